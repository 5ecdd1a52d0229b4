package vm

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cavaliergopher/cpio"
)

// inOrder gives the files of kernel modules below dir, each after those that it depends on. The packages of
// Debian have no list of that: it is made on installation.
func inOrder(dir string, names []string) ([]string, error) {
	byName := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(filepath.Base(path), ".ko"); ok {
			byName[strings.ReplaceAll(name, "-", "_")] = path
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	var paths []string
	taken := map[string]bool{}
	var take func(string) error
	take = func(name string) error {
		name = strings.ReplaceAll(name, "-", "_")
		if taken[name] {
			return nil
		}
		taken[name] = true
		path := byName[name]
		if path == "" {
			return fmt.Errorf("no module %s below %s", name, dir)
		}
		depends, err := dependencies(path)
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
		for _, d := range depends {
			if err := take(d); err != nil {
				return err
			}
		}
		paths = append(paths, path)
		return nil
	}
	for _, name := range names {
		if err := take(name); err != nil {
			return nil, err
		}
	}
	return paths, nil
}

// dependencies reads what modinfo(8) calls depends.
func dependencies(module string) ([]string, error) {
	f, err := elf.Open(module)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	section := f.Section(".modinfo")
	if section == nil {
		return nil, errors.New("no section .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for entry := range bytes.SplitSeq(info, []byte{0}) {
		if list, ok := bytes.CutPrefix(entry, []byte("depends=")); ok && len(list) > 0 {
			return strings.Split(string(list), ","), nil
		}
	}
	return nil, nil
}

// libraryDirs are where the dynamic linker of Debian looks.
var libraryDirs = []string{"/usr/lib/x86_64-linux-gnu", "/lib/x86_64-linux-gnu", "/lib64"}

// addPrograms adds programs to /bin, and libraries and plug-ins where they are here.
func addPrograms(w *cpio.Writer, programs []string) error {
	added := map[string]bool{}
	var addELF func(name, path string) error
	addELF = func(name, path string) error {
		if added[name] {
			return nil
		}
		added[name] = true
		if err := addDirs(w, added, name); err != nil {
			return err
		}
		if err := addFile(w, name, path); err != nil {
			return err
		}
		f, err := elf.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		needed, err := f.ImportedLibraries()
		if err != nil {
			return err
		}
		if interpreter := f.Section(".interp"); interpreter != nil {
			b, err := interpreter.Data()
			if err != nil {
				return err
			}
			path := strings.TrimRight(string(b), "\x00")
			if err := addELF(strings.TrimPrefix(path, "/"), path); err != nil {
				return err
			}
		}
		for _, library := range needed {
			path, err := find(library)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if err := addELF(strings.TrimPrefix(path, "/"), path); err != nil {
				return err
			}
		}
		return nil
	}
	for _, path := range programs {
		name := "bin/" + filepath.Base(path)
		if strings.HasSuffix(path, ".so") {
			name = strings.TrimPrefix(path, "/")
		}
		if err := addELF(name, path); err != nil {
			return err
		}
	}
	return nil
}

func find(library string) (string, error) {
	for _, dir := range libraryDirs {
		path := filepath.Join(dir, library)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("library %s: %w", library, fs.ErrNotExist)
}

// addDirs adds the directories that a file is in, but /bin, which is there.
func addDirs(w *cpio.Writer, added map[string]bool, file string) error {
	dir := filepath.Dir(file)
	if dir == "." || dir == "bin" || added[dir] {
		return nil
	}
	added[dir] = true
	if err := addDirs(w, added, dir); err != nil {
		return err
	}
	return w.WriteHeader(&cpio.Header{Name: dir, Mode: cpio.TypeDir | 0o755})
}
