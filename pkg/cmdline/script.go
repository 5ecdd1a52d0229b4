package cmdline

// A Script is what wrote the rules before istio-iptables was a program: a shell script of the image proxy_init. It knows
// short flags only and fewer of them.
type Script int

// The scripts, by what they know.
const (
	NoScript    Script = iota // the program
	FirstScript               // before Istio 0.8: -p, -u and -i; without -i everything is redirected
	LaterScript               // to 1.3: lists of ports, -k from 1.1 on
)

// scriptImage is the image, without registry and repository, that holds the scripts.
const scriptImage = "proxy_init"

func scriptOf(image string, args Args) Script {
	name, _ := splitImage(image)
	_, listsPorts := args.Value(FlagIncludeInboundPorts) // as Istio's template does since 0.8
	switch r := ReleaseOf(image); {
	case name != scriptImage:
		return NoScript
	case r.Before(0, 8) || r == Release{} && !listsPorts:
		return FirstScript
	default:
		return LaterScript
	}
}

// defaults is what f stands at where the script differs from the program.
func (s Script) defaults(f Flag) (string, bool) {
	all := s == FirstScript && (f == FlagIncludeOutboundCIDRs || f == FlagIncludeInboundPorts)
	return "*", all
}
