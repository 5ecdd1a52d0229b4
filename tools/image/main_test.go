package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// content is what a test may change in an archive, for each architecture.
type content struct {
	architectures []string
	files         map[string]elf.Machine
	mode          int64
	user          string
	entrypoint    []string
}

func TestCheck(t *testing.T) {
	w := wanted{entrypoint: []string{"/p"}, files: []string{"p"}}
	for name, c := range map[string]struct {
		change func(*content)
		want   string // in the error; empty wants none
	}{
		"as wanted":           {func(*content) {}, ""},
		"a missing platform":  {func(c *content) { c.architectures = []string{"amd64"} }, "architectures are [amd64], want arm64 too"},
		"root":                {func(c *content) { c.user = "" }, "user is , want 65532:65532"},
		"no entrypoint":       {func(c *content) { c.entrypoint = nil }, "entrypoint is [], want [/p]"},
		"one more file":       {func(c *content) { c.files["etc/passwd"] = elf.EM_X86_64 }, "list of files is [etc/passwd p], want [p]"},
		"the wrong machine":   {func(c *content) { c.files["p"] = elf.EM_RISCV }, "machine of p is EM_RISCV, want EM_AARCH64"},
		"a file not to start": {func(c *content) { c.mode = 0o644 }, "mode of p is -rw-r--r--, want -rwxr-xr-x"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "image.tar")
			if err := os.WriteFile(file, layout(t, c.change), 0o644); err != nil {
				t.Fatal(err)
			}
			digest, err := check(file, w, []string{"amd64", "arm64"})
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("error %v, want %q", err, c.want)
			}
			if !strings.HasPrefix(digest, "sha256:") {
				t.Errorf("digest is %q", digest)
			}
		})
	}
}

// layout makes an archive with the images that are wanted, after a change.
func layout(t *testing.T, change func(*content)) []byte {
	t.Helper()
	all := content{architectures: []string{"amd64", "arm64"}, files: map[string]elf.Machine{}}
	change(&all)
	files := map[string][]byte{}
	put := func(b []byte) map[string]any {
		digest := fmt.Sprintf("sha256:%x", sha256.Sum256(b))
		files[blob(digest)] = b
		return map[string]any{"digest": digest}
	}
	putJSON := func(v any) map[string]any { return put(toJSON(t, v)) }
	var manifests []any
	for _, arch := range all.architectures {
		c := content{files: map[string]elf.Machine{"p": machines[arch]}, mode: 0o755, user: user, entrypoint: []string{"/p"}}
		change(&c)
		programs := map[string][]byte{}
		for name, machine := range c.files {
			programs[name] = program(t, machine)
		}
		layer := &bytes.Buffer{}
		zip := gzip.NewWriter(layer)
		if _, err := zip.Write(tarOf(t, programs, c.mode)); err != nil {
			t.Fatal(err)
		}
		if err := zip.Close(); err != nil {
			t.Fatal(err)
		}
		m := putJSON(map[string]any{
			"config": putJSON(map[string]any{"architecture": arch, "os": "linux", "config": map[string]any{"User": c.user, "Entrypoint": c.entrypoint}}),
			"layers": []any{put(layer.Bytes())},
		})
		m["platform"] = map[string]any{"architecture": arch, "os": "linux"}
		manifests = append(manifests, m)
	}
	index := putJSON(map[string]any{"manifests": manifests})
	files["index.json"] = toJSON(t, map[string]any{"manifests": []any{index}})
	return tarOf(t, files, 0o644)
}

func toJSON(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func tarOf(t *testing.T, files map[string][]byte, mode int64) []byte {
	t.Helper()
	b := &bytes.Buffer{}
	w := tar.NewWriter(b)
	for name, content := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(content))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// program gives the header of a program without sections.
func program(t *testing.T, machine elf.Machine) []byte {
	t.Helper()
	h := elf.Header64{Type: uint16(elf.ET_EXEC), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT), Ehsize: 64}
	copy(h.Ident[:], elf.ELFMAG+string([]byte{byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)}))
	b := &bytes.Buffer{}
	if err := binary.Write(b, binary.LittleEndian, h); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
