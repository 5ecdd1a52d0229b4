package rules

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/meshvirt/meshvirt/pkg/nft"
	"github.com/meshvirt/meshvirt/pkg/plan"
)

// TestTProxyPaths has the paths of nat-proxy, with a relay that TPROXY brings the guest's connections.
func TestTProxyPaths(t *testing.T) {
	for name, w := range map[string]world{
		"plain": plain, "istio mode": istioMode,
		"plain without bridge-nf": plain.withoutBridgeNF(), "istio mode without bridge-nf": istioMode.withoutBridgeNF(),
	} {
		t.Run(name, func(t *testing.T) {
			// Without the chain that matters there is no socket for the packet: it is dropped on its way
			// out or, marked by the other chain, refused by the pod.
			last, lost6 := "as an IP packet", "refused"
			if w.noBridgeNF {
				last, lost6 = "where the bridge's packets", noAnswer
			}
			direct := "guest from 10.244.1.1" // of UDP by KubeVirt alone
			if w.kubevirt == istioMode.kubevirt {
				direct = "refused"
			}
			paths := []path{
				{fromGuest, appUID, "tcp", away + ":80", "proxy, outbound, network from " + podIP, last, noAnswer},
				{fromGuest, appUID, "tcp", "[" + away6 + "]:80", "proxy, outbound, network from " + podIP6, last, lost6},
				{fromGuest, appUID, "tcp", away + ":80", "proxy, outbound, network from " + podIP, "to the socket of our proxy", noAnswer},
				// Unmarked, it is Istio's, which takes it for a call to the pod.
				{fromGuest, appUID, "tcp", away + ":80", "proxy, outbound, network from " + podIP, "our proxy takes the connection", "inbound, no route"},
				{fromGuest, appUID, "tcp", away + ":3306", "network from " + podIP, "an excluded port goes straight out", "proxy, outbound, network from " + podIP},
				{fromGuest, appUID, "tcp", "[" + excluded6 + "]:80", "network from " + podIP6, "an excluded address goes straight out", "proxy, outbound, network from " + podIP6},
				{fromGuest, appUID, "udp", "10.96.0.10:53", "forwarder, mesh DNS from " + podIP, "asked again by our proxy", "cluster DNS from " + podIP},
				{fromGuest, appUID, "udp", "[fd00:10:96::a]:53", "forwarder, mesh DNS from " + podIP6, "asked again by our proxy", "cluster DNS from " + podIP6},
				{fromGuest, appUID, "tcp", "10.96.0.10:53", "proxy, mesh DNS from " + podIP, last, noAnswer},
				{fromGuest, appUID, "tcp", "[" + podIP6 + "]:80", "outbound, inbound, proxy, guest from fd10:0:2::1", "", "inbound, refused"},
				{fromNetwork, appUID, "tcp", podIP + ":80", "inbound, proxy, guest from 10.0.2.1", "our proxy's call to the guest", "inbound, proxy, outbound, guest from 10.0.2.1"},
				{fromNetwork, appUID, "tcp", "[" + podIP6 + "]:80", "inbound, proxy, guest from fd10:0:2::1", "the mesh's proxy lets it in", "inbound, refused"},
				// The guest's replies go to the client itself, not to our proxy.
				{fromNetwork, appUID, "tcp", podIP + ":22", "guest from 10.244.1.1", "", "guest from 10.244.1.1"},
				{fromNetwork, appUID, "tcp", "[" + podIP6 + "]:22", "guest from fd00:10:244:1::1", "", "guest from fd00:10:244:1::1"},
				{fromNetwork, appUID, "udp", podIP + ":9999", "guest from 10.244.1.1", "no mesh takes UDP", direct},
				// The guard.
				{fromGuest, appUID, "tcp", "127.0.0.1:8001", noAnswer, "the pod's loopback is not", "outbound, refused"},
				{fromGuest, appUID, "tcp", "10.0.2.1:80", noAnswer, "", "inbound, refused"},
				{fromGuest, appUID, "tcp", "[fd10:0:2::1]:15021", noAnswer, "", "health from fd10:0:2::2"},
				{fromGuest, appUID, "tcp", "[" + podIP6 + "]:15121", noAnswer, "the mesh's own ports are not", "outbound, inbound, refused"},
			}
			newLab(t, w).withRelayRoute().try(build(t, dnsPlan(plan.TProxy), dualPod), paths)
		})
	}
}

// TestTProxyRewrite: a connection goes on when the table is written again, as it is when a bridge comes.
func TestTProxyRewrite(t *testing.T) {
	for name, w := range map[string]world{"bridge-nf": plain, "no bridge-nf": plain.withoutBridgeNF()} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, w).withRelayRoute()
			// Else the kernel finds the socket of a connection that it knows by itself, for a while.
			l.pod.Sysctl(t, "ipv4/tcp_early_demux", "0")
			p := dnsPlan(plan.TProxy)
			p.Proxy.OutboundPort = 15201
			r := build(t, p, dualPod)
			l.apply(r)
			var relay net.Listener
			var guest net.Conn
			for _, err := range []error{
				l.pod.Do(proxyUID, func() (err error) { relay, err = listenTransparent("tcp", ":15201"); return err }),
				l.guest.Do(appUID, func() (err error) { guest, err = net.DialTimeout("tcp", away+":80", answerIn); return err }),
			} {
				if err != nil {
					t.Fatal(err)
				}
			}
			defer relay.Close()
			defer guest.Close()
			pod, err := relay.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer pod.Close()
			if got := pod.LocalAddr().String(); got != away+":80" {
				t.Errorf("the relay's socket has address %s, want %s:80", got, away)
			}
			deadline := time.Now().Add(2 * answerIn)
			guest.SetDeadline(deadline)
			pod.SetDeadline(deadline)
			for range 3 {
				for from, to := range map[net.Conn]net.Conn{guest: pod, pod: guest} {
					var got [5]byte
					if _, err := from.Write([]byte("hello")); err != nil {
						t.Fatal(err)
					}
					if _, err := io.ReadFull(to, got[:]); err != nil {
						t.Fatal(err)
					}
				}
				l.apply(r)
			}
			// Without the table the guest's next packet does not find the relay: the test can fail.
			l.apply(nft.New(Table))
			pod.SetDeadline(time.Now().Add(silence))
			guest.Write([]byte("lost"))
			if n, err := pod.Read(make([]byte, 4)); err == nil {
				t.Errorf("%d bytes came without any rule", n)
			}
		})
	}
}
