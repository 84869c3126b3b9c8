package sessile_test

import (
	"fmt"
	"net/http"
	"sync"
	"testing"

	"github.com/sessile/sessile"
	"github.com/sessile/sessile/store/memory"
)

func TestTheSessionsOfAUser(t *testing.T) {
	for name, st := range stores(t) {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, st, sessile.Options{})
			var mine sessile.Key
			s.page("/mine", func(_ http.ResponseWriter, _ *http.Request, s *sessile.Session[data]) error {
				mine = s.Key()
				return nil
			})
			desk, phone, tablet, gone := s.browser(), s.browser(), s.browser(), s.browser()
			for _, b := range []*browser{desk, phone, tablet, gone} {
				b.want("/login", "")
			}
			gone.want("/logout", "")
			desk.want("/mine", "")
			list := func(want int) []sessile.Info[data] {
				t.Helper()
				all, err := s.m.Sessions(t.Context(), "alice")
				if err != nil || len(all) != want {
					t.Errorf("%d sessions, %v, want %d", len(all), err, want)
				}
				return all
			}
			list(3)
			if all, err := s.m.Sessions(t.Context(), "bob"); len(all) != 0 || err != nil {
				t.Errorf("somebody else's: %v, %v", all, err)
			}
			for i, e := range list(3) {
				if e.Key == mine {
					continue
				}
				if n, err := s.m.RevokeOnly(t.Context(), "bob", e.Key); n != 0 || err != nil {
					t.Errorf("somebody else ends it: %d, %v", n, err)
				}
				if n, err := s.m.RevokeOnly(t.Context(), "alice", e.Key); n != 1 || err != nil {
					t.Errorf("session %d: %d, %v", i, n, err)
				}
				break
			}
			list(2)
			if n, err := s.m.Revoke(t.Context(), "alice", mine); n != 1 || err != nil {
				t.Errorf("all others: %d, %v", n, err)
			}
			list(1)
			desk.want("/", `"alice" 0`)
			phone.want("/", `"" 0`)
			tablet.want("/", `"" 0`)
			if n, err := s.m.Revoke(t.Context(), "alice"); n != 1 || err != nil {
				t.Errorf("all: %d, %v", n, err)
			}
			desk.want("/", `"" 0`)
			list(0)
		})
	}
}

// Whoever logs in while all sessions of the user are being ended is not logged in afterwards, or has come later: in the end there
// is no session that is not in the list.
func TestLoginsAreListed(t *testing.T) {
	s := newSite(t, memory.New(memory.Options{}), sessile.Options{})
	var wg sync.WaitGroup
	browsers := make([]*browser, 40)
	for i := range browsers {
		browsers[i] = s.browser()
		wg.Go(func() { browsers[i].get("/login") })
		if i%8 == 0 {
			wg.Go(func() {
				if _, err := s.m.Revoke(t.Context(), "alice"); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	in := 0
	for _, b := range browsers {
		if b.get("/") == `"alice" 0` {
			in++
		}
	}
	all, err := s.m.Sessions(t.Context(), "alice")
	if len(all) != in || err != nil {
		t.Errorf("%d are listed, %v, and %d logged in", len(all), err, in)
	}
	if n, err := s.m.Revoke(t.Context(), "alice"); n != in || err != nil {
		t.Errorf("%d of %d were ended, %v", n, in, err)
	}
	for i, b := range browsers {
		if got := b.get("/"); got != `"" 0` {
			t.Error(fmt.Sprint("browser ", i, ": ", got))
		}
	}
}
