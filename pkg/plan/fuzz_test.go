package plan

import "testing"

// Whatever decodes encodes to something that decodes to the same.
func FuzzDecode(f *testing.F) {
	good, err := example().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add("{}")
	f.Add(`{"release":"` + Release + `","mode":"rules","interfaces":["k6t-eth0"],"podInterface":"eth0","guest":{"ipv6":"fd10:0:2::2","udp":["1-65535"]},"mesh":{"outboundPort":1,"inboundPort":2,"uid":1337,"gid":1337,"ownPorts":null},"outbound":{},"inbound":{}}`)
	f.Fuzz(func(t *testing.T, s string) {
		p, err := Decode(s)
		if err != nil {
			return
		}
		once, err := p.Encode()
		if err != nil {
			return // longer than it came: over the size that a container takes
		}
		again, err := Decode(once)
		if err != nil {
			t.Fatalf("%s does not decode: %v", once, err)
		}
		if twice, err := again.Encode(); err != nil || twice != once {
			t.Errorf("encoded\n%s\nthen, error %v,\n%s", once, err, twice)
		}
	})
}
