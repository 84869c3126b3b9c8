package memory_test

import (
	"strings"
	"testing"

	"github.com/sessile/sessile/store/memory"
	"github.com/sessile/sessile/store/storetest"
)

func TestConformance(t *testing.T) {
	for name, opt := range map[string]memory.Options{"TTL": {}, "lazy": {LazyExpiry: true}} {
		h := storetest.Harness[*memory.Store]{
			New:     func(*testing.T) *memory.Store { return memory.New(opt) },
			BadKeys: []string{strings.Repeat("k", memory.MaxKey+1)},
		}
		t.Run(name+" origin", func(t *testing.T) { storetest.RunOrigin(t, h) })
		t.Run(name+" target", func(t *testing.T) { storetest.RunTarget(t, h) })
	}
}
