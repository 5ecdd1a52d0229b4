package proxy

import (
	"net/netip"
	"os"
	"regexp"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMetricsAreDocumented(t *testing.T) {
	p, err := New(Config{OutboundPort: outPort, InboundPort: inPort, StatusPort: statPort, DNSPort: dnsPort, Nameservers: []netip.Addr{world4}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	families, err := p.metrics.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var registered, documented []string
	for _, f := range families {
		registered = append(registered, f.GetName())
	}
	b, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range regexp.MustCompile("(?m)^\\| `(meshvirt_proxy_[a-z_]+)`").FindAllSubmatch(b, -1) {
		documented = append(documented, string(row[1]))
	}
	slices.Sort(registered)
	slices.Sort(documented)
	if diff := cmp.Diff(registered, documented); diff != "" {
		t.Errorf("docs/metrics.md (-registered +documented)\n%s", diff)
	}
}
