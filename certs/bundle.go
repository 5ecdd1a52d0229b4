package certs

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"slices"
	"time"
)

const (
	// maxCAs bounds a bundle. One is in use, two during a rotation; only a Secret that is deleted again and
	// again makes more, and each takes about 800 bytes of an object that may have 1.5 MB.
	maxCAs = 16
	// expiredGrace is how long an expired CA stays in a bundle: an API server's clock may be behind ours.
	expiredGrace = time.Hour
)

// parse gives the certificates of a PEM text once each, in order. What is none is left out, as API
// servers do.
func parse(text []byte) []*x509.Certificate {
	var all []*x509.Certificate
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return all
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err == nil && !contains(all, c) {
			all = append(all, c)
		}
	}
}

func encode(all []*x509.Certificate) []byte {
	var text bytes.Buffer
	for _, c := range all {
		text.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	return text.Bytes()
}

func contains(all []*x509.Certificate, c *x509.Certificate) bool {
	return slices.ContainsFunc(all, c.Equal)
}

// merge gives the bundle to store instead of have: all of must, and what other replicas may still
// serve a certificate of, which is everything that has not expired.
func merge(have, must []*x509.Certificate, now time.Time) []*x509.Certificate {
	var all []*x509.Certificate
	for _, c := range slices.Concat(have, must) {
		if !contains(all, c) && (contains(must, c) || now.Before(c.NotAfter.Add(expiredGrace))) {
			all = append(all, c)
		}
	}
	for len(all) > maxCAs {
		oldest := -1
		for i, c := range all {
			if !contains(must, c) && (oldest < 0 || c.NotBefore.Before(all[oldest].NotBefore)) {
				oldest = i
			}
		}
		if oldest < 0 {
			break
		}
		all = slices.Delete(all, oldest, oldest+1)
	}
	return all
}
