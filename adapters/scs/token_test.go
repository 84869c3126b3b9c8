package scsstore_test

import (
	"crypto/rand"
	"encoding/base64"
)

// newToken makes one as scs does.
func newToken() string {
	var b [32]byte
	rand.Read(b[:])
	return base64.RawURLEncoding.EncodeToString(b[:])
}
