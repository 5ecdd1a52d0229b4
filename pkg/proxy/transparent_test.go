package proxy

import (
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestTransparentNeedsCapability: the error says what the container lacks. That the listener takes
// what TPROXY brings, and the destination from it, pkg/rules and test/e2e/netlab show with packets.
func TestTransparentNeedsCapability(t *testing.T) {
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends without its capabilities
		var none [2]unix.CapUserData
		if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
			failed <- err
			return
		}
		fd, err := listen(0, false, true)
		unix.Close(fd)
		failed <- err
	}()
	if err := <-failed; err == nil || !strings.Contains(err.Error(), "IP_TRANSPARENT") || !strings.Contains(err.Error(), "NET_RAW") {
		t.Errorf("got %v, want an error that names the option and the capability", err)
	}
}
