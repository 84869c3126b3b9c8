package sessile

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/base64"
	"hash"
	"strings"
	"sync"
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
//
// Where the store takes such keys the tag is in braces: a Redis Cluster then looks at nothing else of it.
type Key string

const (
	keyBytes = 20
	tagLen   = (tagBytes*8 + 4) / 5 // base32
	keyLen   = (keyBytes*8 + 4) / 5
)

// A keyer makes keys, with what a site has set up.
type keyer struct {
	braces bool
	hashes sync.Pool // of *hasher: to make one costs more than to use it
}

type hasher struct {
	hash.Hash
	in  []byte
	sum [sha256.Size]byte
}

func newKeyer(secret []byte, braces bool) *keyer {
	return &keyer{braces: braces, hashes: sync.Pool{New: func() any { return &hasher{Hash: hmac.New(sha256.New, secret)} }}}
}

// mac is a keyed hash of what is hashed and of the thing itself.
func (k *keyer) mac(what, of string) (sum [sha256.Size]byte) {
	h := k.hashes.Get().(*hasher)
	h.Reset()
	h.in = append(append(append(h.in[:0], what...), 0), of...)
	h.Write(h.in)
	h.Sum(h.sum[:0])
	sum = h.sum
	k.hashes.Put(h)
	return sum
}

// session is the key of the session that t names. What t is hashed with need not be secret for it not to be found out, which is random;
// where it is, somebody who can write to the store cannot make a session whose token he knows, either.
func (k *keyer) session(t token) Key {
	var b [tagBytes + keyBytes]byte
	random := t.bytes()
	copy(b[:], random[:tagBytes])
	sum := k.mac("session", string(t))
	copy(b[tagBytes:], sum[:])
	return k.of(b[:])
}

// of writes a key that is a tag and a hash.
func (k *keyer) of(b []byte) Key {
	var text [1 + tagLen + 1 + keyLen]byte
	out := text[:0]
	if k.braces {
		out = append(out, '{')
	}
	out = letters.AppendEncode(out, b[:tagBytes])
	if k.braces {
		out = append(out, '}')
	}
	return Key(letters.AppendEncode(out, b[tagBytes:]))
}

// tag is what the keys of one session begin with.
func (k Key) tag() Key { return k[:len(k)-keyLen] }

// bytes are a key's tag and hash, nil where it is none.
func (k Key) bytes() []byte {
	b := make([]byte, 0, tagBytes+keyBytes+8) // AppendDecode wants room for what it takes for padding
	text := []byte(strings.NewReplacer("{", "", "}", "").Replace(string(k)))
	if len(text) != tagLen+keyLen {
		return nil
	}
	b, err := letters.AppendDecode(b, text[:tagLen])
	if err == nil {
		b, err = letters.AppendDecode(b, text[tagLen:])
	}
	if err != nil {
		return nil
	}
	return b
}

// user is the key of the list of a user's sessions.
func (k *keyer) user(id string) Key {
	sum := k.mac("user", id)
	return Key(letters.EncodeToString(sum[:keyBytes]))
}

// adopted is the token of the session that an old one of another library's becomes.
func (k *keyer) adopted(id string) token {
	sum := k.mac("adopted", id)
	return tokenOf(sum[:tokenBytes])
}

// newToken makes a token with the tag of like, or one of its own where like is "".
func newToken(like token) token {
	var b [tokenBytes]byte
	rand.Read(b[:]) // never fails: it ends the program (crypto/rand)
	if like != "" {
		old := like.bytes()
		copy(b[:tagBytes], old[:])
	}
	return tokenOf(b[:])
}

func tokenOf(b []byte) token { return token(base64.RawURLEncoding.EncodeToString(b)) }

// valid reports whether t has the form of a token. Nothing else is looked up.
func (t token) valid() bool {
	if len(t) != tokenLen || strings.ContainsAny(string(t), "\r\n") { // which base64 skips
		return false
	}
	var b [tokenBytes + 2]byte
	_, err := strict.Decode(b[:], []byte(t))
	return err == nil
}

// bytes are those of a valid token.
func (t token) bytes() (b [tokenBytes]byte) {
	_, _ = strict.Decode(b[:], []byte(t))
	return b
}

// strict refuses bits behind the last byte: there is one way to write a token.
var strict = base64.RawURLEncoding.Strict()

// sealFor and unseal hide the successor of a session from all but those who know its token: t. next is its key, which is another one
// each time.
func (t token) sealFor(successor token, next Key) []byte {
	b, pad := successor.bytes(), t.pad(next)
	subtle.XORBytes(b[:], b[:], pad[:tokenBytes])
	return b[:]
}

func (t token) unseal(sealed []byte, next Key) token {
	var b [tokenBytes]byte
	pad := t.pad(next)
	subtle.XORBytes(b[:], sealed, pad[:tokenBytes])
	return tokenOf(b[:])
}

func (t token) pad(next Key) [sha256.Size]byte {
	secret := t.bytes()
	return newKeyer(secret[:], false).mac("successor", string(next))
}

var letters = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)
