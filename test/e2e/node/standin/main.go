// Standin is what runs in the containers of a virt-launcher pod in place of KubeVirt's and Istio's
// programs, under their names: pilot-agent writes the recorded rules and serves as the sidecar of the
// lab does, virt-launcher-monitor and virt-tail wait for their end. As agent it is somebody to talk to.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/meshvirt/meshvirt/test/e2e/netlab/agent"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/istio"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/sidecar"
)

// istioVersion is the environment variable with the version of Istio, as in Istio's own image.
const istioVersion = "ISTIO_META_ISTIO_VERSION"

func main() {
	name := filepath.Base(os.Args[0])
	if err := run(append([]string{name}, os.Args[1:]...)); err != nil {
		fmt.Fprintf(os.Stderr, "%s (stand-in): %v\n", name, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	ended, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	command := args[0]
	if command == "pilot-agent" && len(args) > 1 {
		command, args = args[1], args[1:]
	}
	switch command {
	case "istio-iptables":
		return istioInit(args)
	case "proxy":
		return proxy(ended)
	case "request": // of a preStop hook
		return nil
	case "agent":
		return agent.Serve("", stdio{os.Stdin, os.Stdout})
	case "pilot-agent", "virt-launcher-monitor", "virt-tail": // the first, without arguments, is the pause container
		<-ended.Done()
		return nil
	}
	return fmt.Errorf("no command %q", command)
}

// istioInit writes the rules that istio-iptables would.
func istioInit(args []string) error {
	env := map[string]string{}
	for _, e := range os.Environ() {
		name, value, _ := strings.Cut(e, "=")
		env[name] = value
	}
	rules, err := istio.Derive(env[istioVersion], args, env)
	if err != nil {
		return err
	}
	if rules.IPv6 != "" || rules.NFT != "" {
		return errors.New("IPv6 and native nftables are not in this image")
	}
	restore := exec.Command("iptables-nft-restore", "--noflush")
	restore.Stdin, restore.Stdout, restore.Stderr = strings.NewReader(rules.IPv4), os.Stdout, os.Stderr
	return restore.Run()
}

// proxy writes the connections it took to its log.
func proxy(ended context.Context) error {
	in, out := io.Pipe()
	go func() {
		<-ended.Done()
		out.Close()
	}()
	return sidecar.Run(sidecar.Config{}, in, os.Stdout)
}

// stdio joins standard input and output to one connection.
type stdio struct {
	io.Reader
	io.Writer
}

func (stdio) Close() error { return os.Stdin.Close() }
