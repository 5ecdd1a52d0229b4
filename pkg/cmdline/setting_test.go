package cmdline

import (
	"strings"
	"testing"
)

// TestSetting: flag, environment, default, and what of that is another thing in old releases.
func TestSetting(t *testing.T) {
	env := func(list ...string) map[string]string {
		m := map[string]string{}
		for i := 0; i < len(list); i += 2 {
			m[list[i]] = list[i+1]
		}
		return m
	}
	for name, c := range map[string]struct {
		args, image string
		env         map[string]string
		flag        Flag
		want        Setting
	}{
		"flag":                         {"-z 9", "", env("INBOUND_CAPTURE_PORT", "7"), FlagInboundPort, Setting{"-z/--inbound-capture-port", "9"}},
		"boolean alone":                {"--dual-stack", "", nil, FlagDualStack, Setting{"--dual-stack", "true"}},
		"environment":                  {"-p 1", "", env("INBOUND_CAPTURE_PORT", "7"), FlagInboundPort, Setting{"environment variable INBOUND_CAPTURE_PORT", "7"}},
		"empty in the environment":     {"-p 1", "", env("INBOUND_CAPTURE_PORT", ""), FlagInboundPort, Setting{Default, "15006"}},
		"default":                      {"-p 1", "", nil, FlagInboundPort, Setting{Default, "15006"}},
		"default is empty":             {"-p 1", "", nil, FlagIncludeInboundPorts, Setting{Default, ""}},
		"the component's name first":   {"", "", env("INVALID_DROP", "t", "DROP_INVALID", "false"), FlagDropInvalid, Setting{"environment variable INVALID_DROP", "t"}},
		"no boolean there":             {"", "", env("INVALID_DROP", "maybe", "DROP_INVALID", "1"), FlagDropInvalid, Setting{"environment variable DROP_INVALID", "1"}},
		"dual stack since 1.22":        {"", "proxyv2:1.22.0", env("ISTIO_DUAL_STACK", "true"), FlagDualStack, Setting{"environment variable ISTIO_DUAL_STACK", "true"}},
		"dual stack before":            {"", "proxyv2:1.21.9", env("ISTIO_DUAL_STACK", "true"), FlagDualStack, Setting{Default, ""}},
		"ENVOY_PORT since 1.22":        {"", "proxyv2:1.22.0", env("ENVOY_PORT", "7"), FlagOutboundPort, Setting{Default, "15001"}},
		"ENVOY_PORT before":            {"", "proxyv2:1.18.7", env("ENVOY_PORT", "7"), FlagOutboundPort, Setting{"environment variable ENVOY_PORT", "7"}},
		"first script":                 {"-p 1 -u 2", "proxy_init:0.7.1", nil, FlagIncludeOutboundCIDRs, Setting{Default, "*"}},
		"first script, told otherwise": {"-p 1 -u 2 -i 10.0.0.0/8", "proxy_init:0.7.1", nil, FlagIncludeOutboundCIDRs, Setting{"-i/--istio-service-cidr", "10.0.0.0/8"}},
		"later script":                 {"-p 1 -u 2", "proxy_init:1.0.6", nil, FlagIncludeOutboundCIDRs, Setting{Default, ""}},
	} {
		if got := parse(t, strings.Fields(c.args)).Within(c.image, c.env).Setting(c.flag); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestScript(t *testing.T) {
	for _, c := range []struct {
		image, args string
		want        Script
	}{
		{"istio/proxyv2:1.0.0", "", NoScript},
		{"", "", NoScript},
		{"docker.io/istio/proxy_init:0.7.1", "-b *", FirstScript},
		{"registry.example:5000/x/proxy_init:0.8.0", "", LaterScript},
		{"proxy_init:custom", "-p 1", FirstScript},
		{"proxy_init:custom", "-p 1 -b *", LaterScript},
	} {
		if got := parse(t, strings.Fields(c.args)).Within(c.image, nil).Script(); got != c.want {
			t.Errorf("%s %s: script %d, want %d", c.image, c.args, got, c.want)
		}
	}
}
