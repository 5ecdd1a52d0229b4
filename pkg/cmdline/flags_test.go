package cmdline

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// Every flag of every recorded help text is in the table with its letter and kind, and nothing else is.
func TestFlagsOfEveryRelease(t *testing.T) {
	files, err := filepath.Glob("testdata/*.help.txt")
	if err != nil || len(files) != 7 {
		t.Fatalf("found %d help texts, want 7 (%v)", len(files), err)
	}
	// Two spaces at least end the name and type; a type is one word. A boolean has none.
	line := regexp.MustCompile(`(?m)^ +(?:-(\w), )?--([\w-]+)(?: (\w+))?(?:  .*)?$`)
	seen := map[Flag]byte{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		found := line.FindAllStringSubmatch(string(text), -1)
		if dashes := regexp.MustCompile(`(?m)^ +-`).FindAll(text, -1); len(dashes) != len(found) || len(found) < 28 {
			t.Errorf("%s: read %d flags of %d lines with one", file, len(found), len(dashes))
		}
		for _, m := range found {
			f := Flag(m[2])
			d, ok := flags[f]
			if !ok {
				t.Errorf("%s: --%s is not in the table", file, f)
			}
			if short := m[1]; short != "" {
				seen[f] = short[0]
				if short[0] != d.short {
					t.Errorf("%s: --%s has the short form -%s, the table says %q", file, f, short, d.short)
				}
			} else if _, ok := seen[f]; !ok {
				seen[f] = 0
			}
			if isBool := m[3] == ""; isBool != d.isBool {
				t.Errorf("%s: --%s takes a %q, the table says it is a boolean: %t", file, f, m[3], d.isBool)
			}
		}
	}
	for f, d := range flags {
		if short, ok := seen[f]; !ok || short != d.short {
			t.Errorf("table: %s is in no help text like this", f)
		}
	}
}
