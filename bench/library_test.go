package main

import (
	"strings"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testserver"
)

// known are the probes in which we do what the others are blamed for, and what that is.
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

// TestLibraryCosts holds us to what the table in docs/library-performance.md says that operations cost.
func TestLibraryCosts(t *testing.T) {
	r := &run{ctx: t.Context(), began: time.Now(), dir: t.TempDir(), rounds: 1}
	defer r.stopAll()
	redis := &server{addr: testserver.Redis(t).Addr}
	most := map[string]string{"read": "1: GET", "change": "2: ", "login": "2: ", "logout": "2: ", "no cookie": "0"}
	for _, o := range operations {
		got, err := r.count(libraryNamed("Sessile"), redis, o)
		if err != nil || !strings.HasPrefix(got, most[o.name]) {
			t.Errorf("%s: got %q, %v, want %q", o.name, got, err, most[o.name])
		}
	}
	got, err := r.count(libraryNamed("scs, goredisstore, IdleTimeout"), redis, operations[0])
	if err != nil || got != "2: GET SET" { // so that we know that they are counted
		t.Errorf("scs: got %q, %v", got, err)
	}
}
