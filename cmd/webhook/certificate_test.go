package main

import (
	"bytes"
	"crypto/tls"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/meshvirt/meshvirt/test/lab"
)

// A mounted Secret that somebody breaks does not reach API servers: the webhook says so and goes on with what it has, until
// there is a pair again. TestCertManager has the whole way from an issuer to an admission.
func TestBrokenPairIsNotServed(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"key broken":            {"tls.key": "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"},
		"key emptied":           {"tls.key": ""},
		"certificate is none":   {"tls.crt": "none"},
		"key of something else": {"tls.key": "other"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, client := certificate(t)
			other, _ := certificate(t)
			p := start(t, dir)
			p.waitFor(t, http.StatusOK)
			old := served(t, p.listen)
			for file, text := range files {
				content := []byte(text)
				if text == "other" {
					content = read(t, filepath.Join(other, file))
				}
				replace(t, filepath.Join(dir, file), content)
			}
			lab.Await(t, "word of it in the log", func() bool {
				return strings.Contains(p.log.String(), `"level":"ERROR","msg":"error re-reading certificate"`)
			})
			if !bytes.Equal(served(t, p.listen), old) {
				t.Error("another certificate is served")
			}
			if _, err := client.Post("https://"+p.listen+"/mutate", "application/json", strings.NewReader(badReview)); err != nil {
				t.Errorf("a client that trusts the old certificate: %v", err)
			}
			for _, file := range []string{"tls.crt", "tls.key"} {
				replace(t, filepath.Join(dir, file), read(t, filepath.Join(other, file)))
			}
			lab.Await(t, "the new pair served", func() bool { return !bytes.Equal(served(t, p.listen), old) })
		})
	}
}

// With a broken pair from the start there is nothing to serve: it ends, and names the directory.
func TestStartsWithAWholePairOnly(t *testing.T) {
	for name, spoil := range map[string]func(dir string) error{
		"no key":     func(dir string) error { return os.Remove(filepath.Join(dir, "tls.key")) },
		"broken key": func(dir string) error { return os.WriteFile(filepath.Join(dir, "tls.key"), []byte("none"), 0o600) },
	} {
		dir, _ := certificate(t)
		if err := spoil(dir); err != nil {
			t.Fatal(err)
		}
		err := run(t.Context(), []string{"-cert-dir", dir, "-cluster=false", "-listen", freeAddress(t), "-health-listen", freeAddress(t), "-metrics-listen="}, io.Discard)
		if want := `-cert-dir is "` + dir + `", want tls.crt and its tls.key there`; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", name, err, want)
		}
	}
}

// An expired certificate is told by the readiness probe, where people look first; a renewed one makes it ready.
func TestExpiredPairIsNotReady(t *testing.T) {
	dir, _ := certificateFor(t, time.Minute)
	fresh, _ := certificate(t)
	p := start(t, dir)
	p.waitFor(t, http.StatusServiceUnavailable)
	if _, body := get(t, "http://"+p.health+"/readyz"); !strings.Contains(body, "the serving certificate expired on ") {
		t.Errorf("/readyz says %q, want that the certificate expired", body)
	}
	for _, file := range []string{"tls.crt", "tls.key"} {
		replace(t, filepath.Join(dir, file), read(t, filepath.Join(fresh, file)))
	}
	p.waitFor(t, http.StatusOK)
}

// served gives the certificate at the address, trusted or not.
func served(t *testing.T, address string) []byte {
	t.Helper()
	conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0].Raw
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// replace gives the file another content at once, by a rename.
func replace(t *testing.T, file string, content []byte) {
	t.Helper()
	next := file + ".next"
	if err := os.WriteFile(next, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, file); err != nil {
		t.Fatal(err)
	}
}
