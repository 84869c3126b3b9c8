package sessile

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/base64"
	"strings"
)

// A token is what the browser has. It is never stored and never logged.
//
// It is a tag of 16 bits, by which a Redis Cluster keeps what belongs to one session in one slot, also when the session gets a new
// token, and 160 random bits (ASVS 7.2.3 and NIST SP 800-63B-4, 5.1, ask for 64 and more).
type token string

const (
	tagBytes    = 2
	randomBytes = 20
	tokenBytes  = tagBytes + randomBytes
	tokenLen    = (tokenBytes*8 + 5) / 6 // base64 without padding
)

// A Key names a session in the store: the tag of its token, and a keyed hash of all of it. Whoever sees keys, in a dump of the store
// or in a list, cannot make a cookie of one. It is a type of its own so that it cannot be hashed a second time.
type Key string

const (
	keyBytes = 20
	tagLen   = (tagBytes*8 + 4) / 5 // base32
)

// newToken makes a token with the tag of like, or one of its own where like is "".
func newToken(like token) token {
	var b [tokenBytes]byte
	rand.Read(b[:]) // never fails: it ends the program (crypto/rand)
	if like != "" {
		copy(b[:tagBytes], like.bytes())
	}
	return tokenOf(b[:])
}

func tokenOf(b []byte) token { return token(base64.RawURLEncoding.EncodeToString(b)) }

// valid reports whether t has the form of a token. Nothing else is looked up.
func (t token) valid() bool {
	if len(t) != tokenLen || strings.ContainsAny(string(t), "\r\n") { // which base64 skips
		return false
	}
	_, err := strict.DecodeString(string(t))
	return err == nil
}

// bytes are those of a valid token.
func (t token) bytes() []byte {
	b, _ := strict.DecodeString(string(t))
	return b
}

// strict refuses bits behind the last byte: there is one way to write a token.
var strict = base64.RawURLEncoding.Strict()

// key hashes t. What it is hashed with need not be secret for t not to be found out, which is random; where it is, somebody who
// can write to the store cannot make a session whose token he knows, either.
func (t token) key(secret []byte) Key {
	return Key(letters.EncodeToString(t.bytes()[:tagBytes])) + digest(secret, "session", string(t))
}

// name is what the store knows the session by. A tag in braces makes a Redis Cluster look at nothing else of it.
func (k Key) name(braces bool) string {
	if !braces {
		return string(k)
	}
	return "{" + string(k[:tagLen]) + "}" + string(k[tagLen:])
}

// digest is 160 bits of a keyed hash. Its letters are those that every store takes: no file name, table without upper and lower case
// or lock of somebody's has to be thought of.
func digest(secret []byte, what, of string) Key {
	return Key(letters.EncodeToString(mac(secret, what, of)[:keyBytes]))
}

func mac(secret []byte, what, of string) []byte {
	h := hmac.New(sha256.New, secret)
	h.Write([]byte(what))
	h.Write([]byte{0})
	h.Write([]byte(of))
	return h.Sum(nil)
}

// sealFor and unseal hide the successor of a session from all but those who know its token: t. next is its key, which is another one
// each time.
func (t token) sealFor(successor token, next Key) []byte {
	b := mac(t.bytes(), "successor", string(next))[:tokenBytes]
	subtle.XORBytes(b, b, successor.bytes())
	return b
}

func (t token) unseal(sealed []byte, next Key) token {
	b := mac(t.bytes(), "successor", string(next))[:tokenBytes]
	subtle.XORBytes(b, b, sealed)
	return tokenOf(b)
}

var letters = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)
