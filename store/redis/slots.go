package redis

import (
	"strings"
	"sync"
)

// slotCount is the number of slots of a Redis Cluster.
const slotCount = 16384

// slotOf is the slot that Redis Cluster puts a key into: the CRC16 of what stands between its first { and the first }
// behind that, where anything does, and of all of it otherwise (keyHashSlot in cluster.c).
func slotOf[T string | []byte](key T) int {
	if first := index(key, '{'); first >= 0 {
		if n := index(key[first+1:], '}'); n > 0 {
			key = key[first+1 : first+1+n]
		}
	}
	crc := uint16(0)
	for i := range len(key) {
		crc = crc<<8 ^ crcTable[byte(crc>>8)^key[i]]
	}
	return int(crc % slotCount)
}

func index[T string | []byte](s T, c byte) int {
	for i := range len(s) {
		if s[i] == c {
			return i
		}
	}
	return -1
}

// crcTable is of CRC-16/XMODEM: polynomial 0x1021, beginning with 0.
var crcTable = func() (table [256]uint16) {
	for i := range table {
		crc := uint16(i) << 8
		for range 8 {
			over := crc&0x8000 != 0
			if crc <<= 1; over {
				crc ^= 0x1021
			}
		}
		table[i] = crc
	}
	return table
}()

// slotTag returns what puts a key into a slot, whatever else stands in its name, if it stands there first: "{a3}". It never
// changes: what lies under names of ours is looked for by every version.
func slotTag(slot int) string { return slotTags()[slot] }

// slotTags are, for each slot, the first of the strings of digits and lower-case letters that are in it: the shorter ones
// come first, and of the same length those that come first in the alphabet. None takes more than four.
var slotTags = sync.OnceValue(func() *[slotCount]string {
	const alphabet = "0123456789abcdefghijklmnopqrstuvwxyz"
	tags, left := new([slotCount]string), slotCount
	for size := 1; left > 0; size++ {
		word := []byte(strings.Repeat(alphabet[:1], size))
		for next := true; next && left > 0; {
			if slot := slotOf(string(word)); tags[slot] == "" {
				tags[slot] = "{" + string(word) + "}"
				left--
			}
			next = false
			for i := size - 1; i >= 0 && !next; i-- { // count on
				c := strings.IndexByte(alphabet, word[i]) + 1
				next = c < len(alphabet)
				word[i] = alphabet[c%len(alphabet)]
			}
		}
	}
	return tags
})
