// Package golden compares what the code makes with the files that tell people of it, and writes them by `make golden`. It
// imports none of this module, so that tests inside any package may use it.
package golden

import (
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Update says that files are to be written and not compared.
var Update = flag.Bool("update", false, "write the golden files, and the generated parts of docs, again")

// File fails the test unless the file has the text.
func File(t testing.TB, file, want string) {
	t.Helper()
	if *Update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(want, Read(t, file)); diff != "" {
		t.Errorf("%s is not what the code says; `make golden` writes it (-code +file)\n%s", file, diff)
	}
}

// Read gives the file's text.
func Read(t testing.TB, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Section gives the page with the text in place of what is there between two lines: one that says what the section
// is and what makes it, such as "keys: made from pkg/annotations", and one of its end.
func Section(t testing.TB, page, what, text string) string {
	t.Helper()
	name, _, _ := strings.Cut(what, ":")
	begin, end := "<!-- "+what+" by make golden -->\n", "<!-- end of "+name+" -->\n"
	head, rest, ok1 := strings.Cut(page, begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		t.Fatalf("the page lacks the lines %q and %q", begin, end)
	}
	return head + begin + text + end + tail
}
