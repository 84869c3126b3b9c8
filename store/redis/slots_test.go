package redis

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/sessile/sessile/internal/testserver"
)

// hostileKeys have braces where they may be taken for a tag, and bytes that are no text.
var hostileKeys = []string{"", "a", "{", "}", "{}", "{}x", "x{}", "{}{x}", "a}b", "a{b", "{a}", "{a}{b}", "x{a}{b}y", "{{a}}", "{{a}b}c", "{a", "a}",
	"}{a}", "}a{", "a{}b{c}d", "{\x00}", "{\xff\xfe}x", "a\x00b", "\r\n", "{ }", "{a}}", "PHPREDIS_SESSION:{u1}abc", "user{b}_LOCK", "123456789"}

func TestSlots(t *testing.T) {
	server := testserver.Redis(t, testserver.WithConf("cluster-enabled yes"))
	keys := hostileKeys
	for range 500 { // of a few characters, so that braces meet in every way
		var b strings.Builder
		for range rand.IntN(12) {
			b.WriteByte("{}{}{}ab\x00\xff"[rand.IntN(10)])
		}
		keys = append(keys, b.String())
	}
	for slot := range slotCount {
		if slot%97 == 0 {
			keys = append(keys, "sessile:m:"+slotTag(slot)+"a{b}")
		}
	}
	for _, key := range keys {
		if got, want := slotOf(key), server.Do("CLUSTER", "KEYSLOT", key); int64(got) != want {
			t.Errorf("slotOf(%q): got %d, want %d", key, got, want)
		}
	}
	for slot := range slotCount {
		if tag := slotTag(slot); slotOf(tag) != slot || len(tag) > len("{xxxx}") {
			t.Fatalf("slotTag(%d): got %q, of slot %d", slot, tag, slotOf(tag))
		}
	}
	// Names in Redis, which no version may change.
	for slot, want := range map[int]string{0: "{1bz}", 1: "{emj}", 8192: "{fjl}", 16383: "{hia}"} {
		if got := slotTag(slot); got != want {
			t.Errorf("slotTag(%d): got %q, want %q", slot, got, want)
		}
	}
}
