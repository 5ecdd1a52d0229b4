package nft

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// elementsPerMessage bounds one message of set members. Its list is a netlink attribute, whose
	// length the kernel counts in 16 bits; a member takes at most 36 bytes (IPv6, end of a range).
	elementsPerMessage = 1500
	// bufferSize of the netlink socket, in bytes. The kernel takes a transaction as one datagram
	// (40,000 IPv6 ranges need 3 MB) and answers every message of it before we read.
	bufferSize = 16 << 20
)

// Apply replaces the table in the kernel by r, in one transaction: packets see the old table or
// the new one, and after an error the old one is as it was. It needs CAP_NET_ADMIN in the network
// namespace (the caller's, unless an option names another) and no program or file.
func (r Ruleset) Apply(opts ...nftables.ConnOption) error {
	c, err := nftables.New(append(opts, nftables.WithSockOptions(largeBuffers))...)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	err = r.write(c)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("write table inet %s: %w (it needs the capability NET_ADMIN)", r.name, err)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EOPNOTSUPP):
		// How nf_tables says that it has no such expression or chain type and can load no module for it.
		return fmt.Errorf("write table inet %s: %w (the node's kernel needs nf_tables with nat, redir, masq, ct and fib for family inet, and tproxy for the mode of that name)", r.name, err)
	}
	return fmt.Errorf("write table inet %s: %w", r.name, err)
}

func (r Ruleset) write(c *nftables.Conn) error {
	t := &nftables.Table{Name: r.name, Family: nftables.TableFamilyINet}
	switch _, err := c.ListTableOfFamily(t.Name, t.Family); {
	case errors.Is(err, unix.ENOENT):
		// No delete: after one, closing the socket waits for an RCU grace period, which is most of the time
		// that the rules of a new pod would take. Creating fails if the table is there now.
		c.CreateTable(t)
	case err != nil:
		return err
	default:
		// Add, delete, add: the delete then cannot fail, should the table be gone meanwhile.
		c.AddTable(t)
		c.DelTable(t)
		c.AddTable(t)
	}
	for _, s := range r.sets {
		ns, members := s.netlink(t)
		if err := c.AddSet(ns, nil); err != nil {
			return fmt.Errorf("set %s: %w", s.name, err)
		}
		for chunk := range slices.Chunk(members, elementsPerMessage) {
			if err := c.SetAddElements(ns, chunk); err != nil {
				return fmt.Errorf("members of set %s: %w", s.name, err)
			}
		}
	}
	chains := make([]*nftables.Chain, len(r.chains)) // all before any rule, which may jump to a later one
	for i, x := range r.chains {
		chains[i] = c.AddChain(x.netlink(t))
	}
	for i, x := range r.chains {
		for _, u := range x.Rules {
			c.AddRule(u.netlink(t, chains[i]))
		}
	}
	return c.Flush()
}

// largeBuffers asks for more than the system's limit, which CAP_NET_ADMIN allows.
func largeBuffers(c *netlink.Conn) error {
	return errors.Join(c.SetWriteBuffer(bufferSize), c.SetReadBuffer(bufferSize))
}
