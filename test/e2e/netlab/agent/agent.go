// Package agent is the program that runs on every host of the lab: in the virtual machine, the
// peer, the node and beside the virtual machine in the pod. It serves, dials and tells what it saw.
// The lab talks to it by JSON-RPC over a pipe or a serial port.
package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/rpc"
	"net/rpc/jsonrpc"
	"time"
)

// Kinds of conversation over TCP.
const (
	// Echo sends one line and a payload, and wants to be told what the server saw, and the payload back.
	Echo = "echo"
	// Banner is Echo after the server has spoken first, as in SSH, SMTP or MySQL.
	Banner = "banner"
	// HTTP is a GET request.
	HTTP = "http"
	// Bulk is Echo whose payload neither end keeps: each sends Dial.Bytes and checks the other's by a sum.
	Bulk = "bulk"
	// DNS answers every question for an A record with one address.
	DNS = "dns"
)

// A Listen opens a server. It accepts Echo, Bulk and HTTP on the same port.
type Listen struct {
	Network string         // tcp or udp
	Addr    netip.AddrPort // an address of the host; for udp not the unspecified one
	Kind    string         // Echo, Banner or DNS
	Answer  netip.Addr     // of Kind DNS
}

// A Dial makes one attempt to converse with a server of another agent, or any HTTP server.
type Dial struct {
	Network string // tcp or udp
	To      netip.AddrPort
	Kind    string            // Echo, Banner or HTTP; ignored for udp
	Token   string            // tells attempts apart
	Bytes   int               // size of Echo's payload
	Half    bool              // close the sending direction before the server answers
	Idle    time.Duration     // of Kind Echo: be silent so long in the middle of what is sent, without keep-alive
	Path    string            // of Kind HTTP; empty means /
	Header  map[string]string // of Kind HTTP
	From    netip.Addr        // for tcp: the address to dial from, if not the usual one
	Tunnel  netip.AddrPort    // for tcp: the proxy to ask for To by HTTP CONNECT
	Timeout time.Duration     // of the whole attempt
}

// Seen is what a server saw of an attempt.
type Seen struct {
	Host  string // name of the server's agent
	Token string
	Peer  netip.AddrPort // the client as the server sees it
	Local netip.AddrPort // the server's end of the connection
}

// Dialed is the outcome of an attempt.
type Dialed struct {
	Local  netip.AddrPort // the client's end
	OK     bool           // what was sent arrived and came back
	Seen   Seen           // what the server answered that it saw
	Status int            // of Kind HTTP
	Body   string         // of Kind HTTP, its first 4 KiB
	Err    string
}

// A Ping sends ICMP echo requests, a few times until one is answered.
type Ping struct {
	To      netip.Addr
	Timeout time.Duration
}

// A Resolve asks a DNS server for the IPv4 addresses of a name.
type Resolve struct {
	Network string // tcp or udp
	Server  netip.AddrPort
	Name    string
	Timeout time.Duration
}

// Resolved is the answer to Resolve.
type Resolved struct {
	Local netip.AddrPort
	Addrs []netip.Addr
	Err   string
}

// A Raw sends one IPv4 packet past the host's own routes and checks, as root of a machine can.
type Raw struct {
	Link    string // the device to send by
	To      string // the hardware address to send to
	Network string // tcp sends a SYN, udp a datagram that has Token for a server of Kind Echo
	Src     netip.AddrPort
	Dst     netip.AddrPort
	Token   string
	Timeout time.Duration // how long to wait for an answer
}

// RawAnswer is what came back from Dst to Src.
type RawAnswer struct {
	Flags string // "syn-ack" or "rst" of TCP, "udp", or empty if there was no answer
}

// A Frame is one Ethernet frame; its source is the link's own address.
type Frame struct {
	To   string // hardware address
	Type uint16 // of what is in Body, such as unix.ETH_P_IP
	Body []byte
}

// A Send sends frames in order, whatever is in them.
type Send struct {
	Link   string
	Frames []Frame
}

// A Configure gives a link its addresses and default routes. What it had before is removed.
type Configure struct {
	Link     string
	Addrs    []netip.Prefix
	Gateways []netip.Addr
}

// An Exec runs a program on the host.
type Exec struct {
	Args    []string
	Timeout time.Duration
}

// Client talks to an agent. Its methods may be called at the same time.
type Client struct {
	rpc *rpc.Client
}

// NewClient makes a client of the agent at the other end of conn.
func NewClient(conn io.ReadWriteCloser) *Client { return &Client{jsonrpc.NewClient(conn)} }

// Close cuts the connection; a call in progress fails.
func (c *Client) Close() error { return c.rpc.Close() }

// ErrNoAnswer says that a program of the lab has not told what came of an attempt.
var ErrNoAnswer = errors.New("the lab does not answer")

// answerMargin is what a call may take longer than the attempt it makes.
const answerMargin = 2 * time.Second

func call[Out any](ctx context.Context, c *Client, timeout time.Duration, method string, in any) (Out, error) {
	out := new(Out)
	ctx, cancel := context.WithTimeout(ctx, timeout+answerMargin)
	defer cancel()
	done := c.rpc.Go("Agent."+method, in, out, make(chan *rpc.Call, 1)).Done
	select {
	case r := <-done:
		var told rpc.ServerError
		switch {
		case r.Error == nil:
		case errors.As(r.Error, &told):
			return *out, fmt.Errorf("agent: %s: %w", method, r.Error)
		default:
			return *out, fmt.Errorf("agent: %s: %w: %w", method, ErrNoAnswer, r.Error)
		}
		return *out, nil
	case <-ctx.Done():
		// The reply may still be written to out: the caller gets another one.
		return *new(Out), fmt.Errorf("agent: %s: %w: %w", method, ErrNoAnswer, ctx.Err())
	}
}

// Ready waits until the agent answers.
func (c *Client) Ready(ctx context.Context, timeout time.Duration) error {
	_, err := call[bool](ctx, c, timeout, "Ready", true)
	return err
}

// setupTimeout bounds what waits for nothing but its host: an emulated machine may take a while, for some
// hundred frames or when it has only just booted.
const setupTimeout = 20 * time.Second

// Listen opens servers. One that is open already stays as it is.
func (c *Client) Listen(ctx context.Context, l ...Listen) error {
	_, err := call[bool](ctx, c, setupTimeout, "Listen", l)
	return err
}

// Dial makes one attempt. A failed attempt is no error of Dial.
func (c *Client) Dial(ctx context.Context, d Dial) (Dialed, error) {
	return call[Dialed](ctx, c, d.Timeout, "Dial", d)
}

// Ping reports whether an answer came.
func (c *Client) Ping(ctx context.Context, p Ping) (bool, error) {
	return call[bool](ctx, c, p.Timeout, "Ping", p)
}

// Resolve asks once. No answer is no error of Resolve.
func (c *Client) Resolve(ctx context.Context, r Resolve) (Resolved, error) {
	return call[Resolved](ctx, c, r.Timeout, "Resolve", r)
}

// Raw sends a packet and waits for an answer.
func (c *Client) Raw(ctx context.Context, r Raw) (RawAnswer, error) {
	return call[RawAnswer](ctx, c, r.Timeout, "Raw", r)
}

// Send sends frames. It waits for no answers.
func (c *Client) Send(ctx context.Context, s Send) error {
	_, err := call[bool](ctx, c, setupTimeout, "Send", s)
	return err
}

// Seen gives what the servers saw of the attempts with this token, whether or not they could answer.
func (c *Client) Seen(ctx context.Context, token string) ([]Seen, error) {
	return call[[]Seen](ctx, c, 0, "Seen", token)
}

// Configure sets up a link.
func (c *Client) Configure(ctx context.Context, cfg Configure) error {
	_, err := call[bool](ctx, c, setupTimeout, "Configure", cfg)
	return err
}

// Exec runs a program and gives its output, which an error has as well.
func (c *Client) Exec(ctx context.Context, timeout time.Duration, args ...string) (string, error) {
	return call[string](ctx, c, timeout, "Exec", Exec{args, timeout})
}
