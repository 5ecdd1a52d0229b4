package agent

import (
	"bufio"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
)

// blockSize is the unit in which Bulk's payload is made: large against a packet and a pipe.
const blockSize = 1 << 20

// serveBulk takes a payload, says whether its sum is right, and sends one back.
func (a ask) serveBulk(c *net.TCPConn, r *bufio.Reader, s Seen) {
	if sum, err := sumOf(r, a.Bytes); err != nil || sum != sumOfSent(a.Token, a.Bytes) {
		return // the client misses the answer
	}
	if json.NewEncoder(c).Encode(s) != nil || send(c, a.Token, a.Bytes) != nil {
		return
	}
	c.CloseWrite()
	io.Copy(io.Discard, r)
}

func (d Dial) bulk(c *net.TCPConn, r *bufio.Reader, out *Dialed) error {
	if err := json.NewEncoder(c).Encode(ask{Token: d.Token, Bytes: d.Bytes, Bulk: true, Timeout: d.Timeout}); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	if err := send(c, d.Token, d.Bytes); err != nil {
		return fmt.Errorf("send %d bytes: %w", d.Bytes, err)
	}
	line, err := r.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("read the answer, which comes if the sum is right: %w", err)
	}
	if err := json.Unmarshal(line, &out.Seen); err != nil || out.Seen.Token != d.Token {
		return fmt.Errorf("the answer is %q, want one with token %s", line, d.Token)
	}
	sum, err := sumOf(r, d.Bytes)
	if err != nil {
		return fmt.Errorf("read %d bytes back: %w", d.Bytes, err)
	}
	if sum != sumOfSent(d.Token, d.Bytes) {
		return fmt.Errorf("the %d bytes that came back have another sum", d.Bytes)
	}
	return nil
}

// send sends n bytes that depend on the token and, in each block, on its place.
func send(w io.Writer, token string, n int) error {
	block := pattern(token, blockSize)
	for i := 0; n > 0; i++ {
		number(block, i)
		k := min(n, blockSize)
		if _, err := w.Write(block[:k]); err != nil {
			return err
		}
		n -= k
	}
	return nil
}

func number(block []byte, i int) {
	for j := range 4 {
		block[j] = byte(i >> (8 * j))
	}
}

func sumOfSent(token string, n int) [sha256.Size]byte {
	h := sha256.New()
	_ = send(h, token, n) // a hash takes everything
	return [sha256.Size]byte(h.Sum(nil))
}

func sumOf(r io.Reader, n int) ([sha256.Size]byte, error) {
	h := sha256.New()
	if _, err := io.CopyN(h, r, int64(n)); err != nil {
		return [sha256.Size]byte{}, err
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}
