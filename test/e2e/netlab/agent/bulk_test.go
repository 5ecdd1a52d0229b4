package agent

import (
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// TestBulk sends through a cable that may change one byte, in either direction.
func TestBulk(t *testing.T) {
	const n = 3*blockSize + 17
	server := listener(t)
	m := &methods{name: "server"}
	go Accept(server, func(c *net.TCPConn) { m.converse(c, false) })
	for name, c := range map[string]struct {
		out, back int // which byte to change, negative for none
		want      string
	}{
		"as sent":          {-1, -1, ""},
		"changed out":      {2 * blockSize, -1, "which comes if the sum is right"},
		"changed back":     {-1, 2 * blockSize, "have another sum"},
		"a block's number": {-1, blockSize + 200, "have another sum"},
	} {
		t.Run(name, func(t *testing.T) {
			cable := listener(t)
			go Accept(cable, func(client *net.TCPConn) {
				up, err := net.Dial("tcp", server.Addr().String())
				if err != nil {
					return
				}
				defer up.Close()
				go func() {
					io.Copy(up, &damaged{Reader: client, at: c.out})
					up.(*net.TCPConn).CloseWrite()
				}()
				io.Copy(client, &damaged{Reader: up, at: c.back})
			})
			var out Dialed
			if err := m.Dial(Dial{Network: "tcp", To: netip.MustParseAddrPort(cable.Addr().String()), Kind: Bulk, Token: "t", Bytes: n, Timeout: 20 * time.Second}, &out); err != nil {
				t.Fatal(err)
			}
			if out.OK != (c.want == "") || !strings.Contains(out.Err, c.want) {
				t.Errorf("got %t, %q, want an error with %q", out.OK, out.Err, c.want)
			}
		})
	}
}

func listener(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// damaged changes the byte at a place.
type damaged struct {
	io.Reader
	at int
}

func (d *damaged) Read(p []byte) (int, error) {
	n, err := d.Reader.Read(p)
	if 0 <= d.at && d.at < n {
		p[d.at] ^= 1
	}
	d.at -= n
	return n, err
}
