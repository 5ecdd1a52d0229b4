package mesh

import (
	"slices"
	"strings"
)

// items splits a list of Istio's: commas, blanks around an item do not count, empty items neither.
func items(list string) []string {
	var all []string
	for s := range strings.SplitSeq(list, ",") {
		if s = strings.TrimSpace(s); s != "" && !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	return all
}

// addItem appends item to list unless it is there, and leaves the rest as it is spelled.
func addItem(list, item string) string {
	switch all := items(list); {
	case slices.Contains(all, item):
		return list
	case len(all) == 0:
		return item
	default:
		return strings.TrimRight(list, ", ") + "," + item
	}
}

// removeItem takes item out of list and leaves the rest as it is spelled; "" if no item is left.
// A list that does not hold item is given back as it is.
func removeItem(list, item string) string {
	all := items(list)
	if !slices.Contains(all, item) {
		return list
	}
	if len(all) == 1 {
		return ""
	}
	kept := slices.DeleteFunc(strings.Split(list, ","), func(s string) bool { return strings.TrimSpace(s) == item })
	return strings.TrimSpace(strings.Join(kept, ","))
}
