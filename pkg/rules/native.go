package rules

// native leaves the guest's traffic to Istio's own redirect of virtual interfaces. Ours are only
// what every mode has: the guard and, if the mesh captures DNS, the zones without which the guest's
// own queries would get no answer.
func native(*builder) {}
