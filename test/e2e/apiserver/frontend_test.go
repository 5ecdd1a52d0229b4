package apiserver

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
)

// frontEnd is what kube-proxy is to a Service: each connection goes to the next backend.
type frontEnd struct {
	connections atomic.Int32

	mu       sync.Mutex
	backends []string // addresses
	open     []io.Closer
}

// use makes the replicas the backends of connections to come.
func (f *frontEnd) use(replicas ...*replica) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.backends = nil
	for _, r := range replicas {
		f.backends = append(f.backends, r.reviews)
	}
}

func (f *frontEnd) next() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.backends[int(f.connections.Add(1))%len(f.backends)]
}

// listen adds a port that leads to the backends.
func (f *frontEnd) listen(t *testing.T) (port int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.keep(l)
	go func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			f.keep(from)
			go f.connect(from)
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

func (f *frontEnd) connect(from net.Conn) {
	defer from.Close()
	to, err := net.Dial("tcp", f.next())
	if err != nil {
		return
	}
	defer to.Close()
	go func() {
		defer to.Close()
		_, _ = io.Copy(to, from)
	}()
	_, _ = io.Copy(from, to)
}

func (f *frontEnd) keep(c io.Closer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open = append(f.open, c)
}

func (f *frontEnd) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.open {
		_ = c.Close()
	}
}
