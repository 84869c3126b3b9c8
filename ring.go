package sessile

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
)

// A ring is the keys that records are encrypted with: the first one writes, all read. Without keys records are as they are.
//
// Each record has a key of its own, derived from a random salt, so that no nonce has to be counted. What is not encrypted, the
// header, and the key under which the record lies are authenticated, too: no record can be put in another one's place.
type ring []ringKey

type ringKey struct {
	number byte // in the header; of two keys with the same number both are tried
	secret []byte
}

const (
	saltSize = 24
	tagSize  = 16
)

func newRing(keys [][]byte) (ring, error) {
	var r ring
	for i, k := range keys {
		if len(k) != 32 {
			return nil, fmt.Errorf("sessile: encryption key %d has %d bytes; 32 are needed", i+1, len(k))
		}
		sum := sha256.Sum256(append([]byte("sessile number of a key\x00"), k...))
		r = append(r, ringKey{max(1, sum[0]), k})
	}
	return r, nil
}

func (k *ringKey) aead(salt []byte) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, k.secret, salt, "sessile record", 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

var errSealed = errors.New("sessile: a record that none of the keys has encrypted")

// encode writes r as it is to lie under key.
func (ks ring) encode(key Key, r *record) ([]byte, error) {
	b := r.encode()
	if len(ks) == 0 {
		return b, nil
	}
	b[2] = ks[0].number
	out := make([]byte, headerSize+saltSize, len(b)+saltSize+tagSize)
	copy(out, b[:headerSize])
	salt := out[headerSize:]
	rand.Read(salt)
	aead, err := ks[0].aead(salt)
	if err != nil {
		return nil, err
	}
	return aead.Seal(out, make([]byte, aead.NonceSize()), b[headerSize:], append([]byte(key), b[:headerSize]...)), nil
}

// decode reads what lies under key. Where there are keys, what is not encrypted is refused, unless plain says that it may be left from
// before: somebody else may have put it there.
func (ks ring) decode(key Key, b []byte, plain bool) (*record, error) {
	switch {
	case len(b) < headerSize || b[2] != 0 && len(b) < headerSize+saltSize:
		return nil, errRecord
	case b[2] == 0 && (plain || len(ks) == 0):
		return decodeRecord(b)
	case b[2] == 0:
		return nil, errSealed
	}
	head, salt := b[:headerSize], b[headerSize:headerSize+saltSize]
	for _, k := range ks {
		if k.number != b[2] {
			continue
		}
		aead, err := k.aead(salt)
		if err != nil {
			return nil, err
		}
		plain := append(make([]byte, 0, len(b)), head...)
		plain, err = aead.Open(plain, make([]byte, aead.NonceSize()), b[headerSize+saltSize:], append([]byte(key), head...))
		if err == nil {
			plain[2] = 0
			return decodeRecord(plain)
		}
	}
	return nil, errSealed
}
