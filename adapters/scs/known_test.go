package scsstore

import (
	"context"
	"strconv"
	"testing"
	"testing/synctest"
)

func TestWhatIsRememberedIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var k known
		under, end := context.WithCancel(t.Context())
		k.add(under, "slow", "slow")
		k.add(under, "slow")
		for i := range 10 * maxRecent {
			k.add(context.Background(), strconv.Itoa(i))
		}
		if n := len(k.recent) + len(k.before); n < maxRecent || n > 2*maxRecent {
			t.Errorf("%d are remembered, of at most twice %d", n, maxRecent)
		}
		if !k.has("slow") || !k.has(strconv.Itoa(10*maxRecent-1)) || k.has("0") {
			t.Error("not the last ones, and those under way, are remembered")
		}
		end()
		synctest.Wait()
		if len(k.using) != 0 || k.marks != 0 || !k.has("slow") {
			t.Errorf("after the end: %v are in use, %d in all", k.using, k.marks)
		}

		// Contexts that do not end for a long time.
		long, end := context.WithCancel(t.Context())
		for i := 0; i < 2*maxMarks; i += 64 {
			var keys []string
			for j := range 64 {
				keys = append(keys, strconv.Itoa(i+j))
			}
			k.add(long, keys...)
		}
		if k.marks != maxMarks || len(k.using) != maxMarks || !k.has("0") || !k.has(strconv.Itoa(2*maxMarks-1)) {
			t.Errorf("%d in use", k.marks)
		}
		end()
		synctest.Wait()
		if k.marks != 0 || len(k.using) != 0 {
			t.Errorf("after the end: %d in use", k.marks)
		}
	})
}
