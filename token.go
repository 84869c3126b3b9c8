package sessile

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"strings"
)

// tokenBytes are random: 160 bits (ASVS 7.2.3 and NIST SP 800-63B-4, 5.1, ask for 64 and more).
const tokenBytes = 20

// tokenLen is the length of a token: base64 without padding.
const tokenLen = (tokenBytes*8 + 5) / 6

// A token is what the browser has. It is never stored and never logged.
type token string

// A Key names a session in the store: a keyed hash of its token. Whoever sees keys, in a dump of the store or in a list, cannot make
// a cookie of one. It is a type of its own so that it cannot be hashed a second time.
type Key string

func newToken() token {
	var b [tokenBytes]byte
	rand.Read(b[:]) // never fails: it ends the program (crypto/rand)
	return token(base64.RawURLEncoding.EncodeToString(b[:]))
}

// valid reports whether t has the form of a token. Nothing else is looked up.
func (t token) valid() bool {
	if len(t) != tokenLen || strings.ContainsAny(string(t), "\r\n") { // which base64 skips
		return false
	}
	_, err := strict.DecodeString(string(t))
	return err == nil
}

// strict refuses bits behind the last byte: there is one way to write a token.
var strict = base64.RawURLEncoding.Strict()

// key hashes t. What it is hashed with need not be secret for t not to be found out, which is random; where it is, somebody who
// can write to the store cannot make a session whose token he knows, either.
func (t token) key(secret []byte) Key {
	return digest(secret, "session", string(t))
}

// digest is a key of 160 bits. Its letters are those that every store takes: no file name, table without upper and lower case or lock
// of somebody's has to be thought of.
func digest(secret []byte, what, of string) Key {
	h := hmac.New(sha256.New, secret)
	h.Write([]byte(what))
	h.Write([]byte{0})
	h.Write([]byte(of))
	return Key(letters.EncodeToString(h.Sum(nil)[:keyBytes]))
}

const keyBytes = 20

var letters = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)
