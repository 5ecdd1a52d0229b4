package sidecar

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/meshvirt/meshvirt/test/e2e/netlab/agent"
)

// AppHealth is the path at which Istio's agent probes the application in the kubelet's place, if the
// injector has rewritten the probe. The stand-in wants the application's port there.
func AppHealth(port uint16) string { return fmt.Sprintf("%s%d", appHealth, port) }

const appHealth = "/app-health/"

// agent is serve, but for probes that are the application's: those it makes at the address by which it
// was asked itself, the pod's, from Envoy's marked source, and answers as the application does.
func (s *server) agent(port uint16, c *net.TCPConn) {
	s.take(Serving, port, remote(c), local(c))
	c.SetDeadline(time.Now().Add(dialTimeout))
	req, err := http.ReadRequest(bufio.NewReader(c))
	if err != nil {
		return
	}
	app, probe := strings.CutPrefix(req.URL.Path, appHealth)
	if !probe {
		answerOK(c)
		return
	}
	up, err := (&net.Dialer{LocalAddr: marked(c), Timeout: dialTimeout}).Dial("tcp", net.JoinHostPort(local(c).Addr().String(), app))
	if err != nil {
		fmt.Fprint(c, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		return
	}
	defer up.Close()
	up.SetDeadline(time.Now().Add(dialTimeout))
	req.URL.Path, req.Close = "/", true
	if req.Write(up) == nil {
		io.Copy(c, up)
	}
}

func answerOK(c *net.TCPConn) {
	fmt.Fprint(c, "HTTP/1.1 200 OK\r\nServer: envoy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
}

// serve answers any HTTP request on the ports on which the proxy itself is the server.
func (s *server) serve(port uint16, c *net.TCPConn) {
	s.take(Serving, port, remote(c), local(c))
	c.SetDeadline(time.Now().Add(dialTimeout))
	if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
		return
	}
	answerOK(c)
}

func (s *server) serveDNS(addr string, by net.ListenConfig) error {
	at := net.JoinHostPort(addr, fmt.Sprint(DNSPort))
	asked := func(peer netip.AddrPort) { s.take(DNS, DNSPort, peer, netip.AddrPort{}) }
	pc, err := by.ListenPacket(context.Background(), "udp", at)
	if err != nil {
		return err
	}
	ln, err := by.Listen(context.Background(), "tcp", at)
	if err != nil {
		return err
	}
	go agent.ServeDNS(pc, DNSAnswer, asked)
	go agent.ServeDNSListener(ln, DNSAnswer, asked)
	return nil
}
