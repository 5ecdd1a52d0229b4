// Package corpus reads directories of recordings: those that come with the lab, and the index that each has.
package corpus

import (
	"embed"
	"encoding/json"
	"fmt"
	"io/fs"
)

// Embedded is a directory of files that are part of the program.
func Embedded(files embed.FS, dir string) fs.FS {
	sub, err := fs.Sub(files, dir)
	if err != nil {
		panic(err) // embedded
	}
	return sub
}

// Cases reads an index: an array of cases, or an object that has it. Its errors name the file.
func Cases[T any](dir fs.FS, file string) ([]T, error) {
	b, err := fs.ReadFile(dir, file)
	if err != nil {
		return nil, err
	}
	var list []T
	if json.Unmarshal(b, &list) == nil {
		return list, nil
	}
	var object struct{ Cases []T }
	if err := json.Unmarshal(b, &object); err != nil {
		return nil, fmt.Errorf("%s: %w, want an array of cases or an object that has it as cases", file, err)
	}
	return object.Cases, nil
}
