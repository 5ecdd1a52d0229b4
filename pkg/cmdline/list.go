package cmdline

import (
	"slices"
	"strings"
)

// Items splits a list of Istio's: commas, blanks around an item do not count, empty items neither.
func Items(list string) []string {
	var all []string
	for s := range strings.SplitSeq(list, ",") {
		if s = strings.TrimSpace(s); s != "" && !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	return all
}

// AddItem appends item to list unless it is there, and leaves the rest as it is spelled.
func AddItem(list, item string) string {
	switch all := Items(list); {
	case slices.Contains(all, item):
		return list
	case len(all) == 0:
		return item
	default:
		return strings.TrimRight(list, ", ") + "," + item
	}
}

// RemoveItem takes item out of list and leaves the rest as it is spelled; "" if no item is left.
// A list that does not hold item is given back as it is.
func RemoveItem(list, item string) string {
	all := Items(list)
	if !slices.Contains(all, item) {
		return list
	}
	if len(all) == 1 {
		return ""
	}
	kept := slices.DeleteFunc(strings.Split(list, ","), func(s string) bool { return strings.TrimSpace(s) == item })
	return strings.TrimSpace(strings.Join(kept, ","))
}
