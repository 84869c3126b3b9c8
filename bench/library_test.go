package main

import (
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testserver"
)

// known are the probes in which we do not do what the others are blamed for not doing either, and what we do.
var known = map[string]string{
	// Of two cookies that differ none counts: which is one's own can only be known by asking the store for both, and who put the
	// other one there may have a session of their own behind it.
	"cookies: one of no session, then one's own": "logged out",
}

// TestLibraryProbes asks us what the table in docs/library-performance.md says of us.
func TestLibraryProbes(t *testing.T) {
	r := &run{ctx: t.Context(), began: time.Now(), dir: t.TempDir(), rounds: 1}
	defer r.stopAll()
	redis := testserver.Redis(t)
	for _, probe := range libraryProbes {
		t.Run(probe.name, func(t *testing.T) {
			v := r.probe(libraryNamed("Sessile"), redis.Addr, probe)
			if want := known[probe.name]; want != "" && v.text != want {
				t.Errorf("%s, and it is said to be %q", v, want)
			} else if want == "" && (!v.ok || v.skip) {
				t.Error(v)
			}
		})
	}
}

// TestLibraryProbesFind has every probe find what it looks for in some library.
func TestLibraryProbesFind(t *testing.T) {
	r := &run{ctx: t.Context(), began: time.Now(), dir: t.TempDir(), rounds: 1}
	defer r.stopAll()
	redis := testserver.Redis(t)
	for _, probe := range libraryProbes {
		switch probe.name {
		case "all sessions of a user ended, of three", // what it looks for is found with hashed ids
			"a list of a user's sessions that cannot be decoded: the next login": // nobody else has one
			continue
		}
		t.Run(probe.name, func(t *testing.T) {
			var said []string
			for _, lib := range libraries {
				if !lib.probed {
					continue
				}
				v := r.probe(lib, redis.Addr, probe)
				if !v.ok && !v.skip {
					return
				}
				said = append(said, lib.name+": "+v.String())
			}
			t.Errorf("it finds nothing: %q", said)
		})
	}
}
