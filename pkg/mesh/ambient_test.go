package mesh

import (
	"slices"
	"testing"
)

func TestReadAmbient(t *testing.T) {
	c, err := ReadAmbient(map[string]string{AnnotationRerouteInterfaces: "k6t-eth0", AnnotationExcludeOutboundCIDRs: "10.0.0.0/8"})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(c.RerouteInterfaces, []string{"k6t-eth0"}) || !slices.Equal(c.OwnPorts, []uint16{15008}) || !c.DualStack || !c.OutboundAll || !c.InboundAll {
		t.Errorf("capture %+v", c)
	}
	if len(c.ExcludeOutboundCIDRs) > 0 {
		t.Error("an exclusion from sidecars counts, ztunnel does not know it")
	}
	if c.DNS == nil || c.DNS.Port != 15053 || !c.DNS.All {
		t.Errorf("DNS %+v, want all of it on 15053", c.DNS)
	}
	for value, want := range map[string]bool{"false": false, "true": true} {
		c, err := ReadAmbient(map[string]string{AnnotationAmbientDNS: value})
		if err != nil || (c.DNS != nil) != want {
			t.Errorf("dns-capture %s: DNS %+v, error %v", value, c.DNS, err)
		}
	}
}
