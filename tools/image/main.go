// Command image checks the archives that tools/image.sh makes: for each architecture our programs, a user
// other than root, and nothing else.
//
// usage: image -architectures "amd64 arm64" DIRECTORY
package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"debug/elf"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// machines are the architectures that an archive may have.
var machines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}

// wanted says what is in an image.
type wanted struct {
	entrypoint, files []string
}

var images = map[string]wanted{
	"webhook": {entrypoint: []string{"/meshvirt-webhook"}, files: []string{"meshvirt-webhook"}},
	// Pods name the program themselves.
	"dataplane": {files: []string{"meshvirt-proxy", "meshvirt-rules"}},
}

const user = "65532:65532"

func main() {
	architectures := flag.String("architectures", "amd64 arm64", "architectures that each archive must have")
	flag.Parse()
	failed := false
	for _, name := range []string{"webhook", "dataplane"} {
		file := filepath.Join(flag.Arg(0), name+".tar")
		digest, err := check(file, images[name], strings.Fields(*architectures))
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", file, err)
			failed = true
			continue
		}
		fmt.Println(file, digest)
	}
	if failed {
		os.Exit(1)
	}
}

type reference struct {
	MediaType, Digest string
	Platform          struct{ Architecture, OS string }
}

// archive is an OCI image layout in a tar file, by name of its entries.
type archive map[string][]byte

// check compares the archive with w, for each of the architectures. It gives the digest of the index, by
// which an image is pinned.
func check(file string, w wanted, architectures []string) (digest string, err error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	a := archive{}
	err = entries(f, func(h *tar.Header, content []byte) error {
		a[h.Name] = content
		return nil
	})
	if err != nil {
		return "", err
	}
	var top, index struct{ Manifests []reference }
	if err := json.Unmarshal(a["index.json"], &top); err != nil {
		return "", fmt.Errorf("index.json: %w", err)
	}
	if len(top.Manifests) != 1 {
		return "", fmt.Errorf("index.json has %d images, want one", len(top.Manifests))
	}
	digest = top.Manifests[0].Digest
	if err := a.decode(digest, &index); err != nil {
		return "", err
	}
	var found []string
	for _, m := range index.Manifests {
		found = append(found, m.Platform.Architecture)
		if imageErr := a.image(m, w); imageErr != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", m.Platform.Architecture, imageErr))
		}
	}
	for _, arch := range architectures {
		if !slices.Contains(found, arch) {
			err = errors.Join(err, fmt.Errorf("architectures are %v, want %s too", found, arch))
		}
	}
	return digest, err
}

// image checks the image of one architecture.
func (a archive) image(m reference, w wanted) error {
	var manifest struct {
		Config reference
		Layers []reference
	}
	if err := a.decode(m.Digest, &manifest); err != nil {
		return err
	}
	var config struct {
		Architecture, OS string
		Config           struct {
			User       string
			Entrypoint []string
			Cmd        []string
		}
	}
	if err := a.decode(manifest.Config.Digest, &config); err != nil {
		return err
	}
	var err error
	want := func(what string, got, want any) {
		if g, w := fmt.Sprint(got), fmt.Sprint(want); g != w {
			err = errors.Join(err, fmt.Errorf("%s is %s, want %s", what, g, w))
		}
	}
	want("platform of the config", config.OS+"/"+config.Architecture, "linux/"+m.Platform.Architecture)
	want("user", config.Config.User, user)
	want("entrypoint", config.Config.Entrypoint, w.entrypoint)
	want("command", config.Config.Cmd, []string{})
	var files []string
	for _, layer := range manifest.Layers {
		unzipped, gzipErr := gzip.NewReader(bytes.NewReader(a[blob(layer.Digest)]))
		if gzipErr != nil {
			return fmt.Errorf("layer %s: %w", layer.Digest, gzipErr)
		}
		layerErr := entries(unzipped, func(h *tar.Header, content []byte) error {
			name := strings.TrimPrefix(h.Name, "/")
			files = append(files, name)
			want("mode of "+name, h.FileInfo().Mode(), os.FileMode(0o755))
			want("owner of "+name, h.Uid, 0)
			program, err := elf.NewFile(bytes.NewReader(content))
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			want("machine of "+name, program.Machine, machines[m.Platform.Architecture])
			libraries, err := program.ImportedLibraries()
			want("libraries of "+name, libraries, []string{})
			return err
		})
		if layerErr != nil {
			return layerErr
		}
	}
	slices.Sort(files)
	want("list of files", files, w.files)
	return err
}

func (a archive) decode(digest string, into any) error {
	b := a[blob(digest)]
	if sum := fmt.Sprintf("sha256:%x", sha256.Sum256(b)); sum != digest {
		return fmt.Errorf("blob %s is missing or another one, %s", digest, sum)
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("blob %s: %w", digest, err)
	}
	return nil
}

func blob(digest string) string { return "blobs/" + strings.Replace(digest, ":", "/", 1) }

// entries calls do for everything in a tar file but directories.
func entries(r io.Reader, do func(h *tar.Header, content []byte) error) error {
	for t := tar.NewReader(r); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if h.Typeflag == tar.TypeDir {
			continue
		}
		content, err := io.ReadAll(t)
		if err != nil {
			return err
		}
		if err := do(h, content); err != nil {
			return err
		}
	}
}
