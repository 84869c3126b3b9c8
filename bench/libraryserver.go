package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// A siteSetup is what a server process of this program is to be.
type siteSetup struct {
	Library       string // one of libraries
	Listen, Redis string
	Life          time.Duration // that sessions have at the most, used or not; 0: what the library does by default
	Hashed        bool          // with scs' HashTokenInStore
}

// siteEnv has the setup of a process that is a server, as JSON.
const siteEnv = "SESSILE_BENCH_SITE"

// serveSite is the whole life of a process that startLibrary started; in any other it returns at once.
func serveSite() {
	text := os.Getenv(siteEnv)
	if text == "" {
		return
	}
	var c siteSetup
	err := json.Unmarshal([]byte(text), &c)
	if err == nil {
		err = fmt.Errorf("no library is called %q", c.Library)
		for _, l := range libraries {
			if l.name == c.Library {
				err = l.serve(c)
			}
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// A librarySite is a server process with one library.
type librarySite struct {
	*proc
	lib  *library
	addr string
}

// startLibrary starts this program again, as a server.
func (r *run) startLibrary(lib *library, c siteSetup) (*librarySite, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if c.Listen, err = freeAddr(); err != nil {
		return nil, err
	}
	c.Library = lib.name
	text, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	p, err := r.start("tcp", c.Listen, "env", siteEnv+"="+string(text), self)
	return &librarySite{p, lib, c.Listen}, err
}

// What the pages keep in a session, by the names that libraries with maps keep it under.
const (
	keyUser = "user"   // who is logged in
	keyPage = "page"   // 1 KiB of something
	keyA    = "a"      // two values that have nothing to do with each other
	keyB    = "b"      //
	keyUID  = "uid"    // the five values of a small session
	keyName = "name"   //
	keyCSRF = "csrf"   //
	keyN    = "visits" // a number, also that of the changes
	keySeen = "seen"   //
)

// A librarySession is the session of one request, as the pages see it.
type librarySession interface {
	user() string
	text(key string) string
	number(key string) int64
	setText(key, value string) error
	addNumber(key string, n int64) error
	// login makes user the one who is logged in, in whatever way the library has for that.
	login(user string) error
	logout() error
	// finish is called when a page has done what it does and is about to answer: a handler of gorilla/sessions saves then.
	finish() error
}

// A visit is one request for a page.
type visit struct {
	librarySession
	arg func(name string) string
	w   http.ResponseWriter // nil where the server is not net/http's
	r   *http.Request
}

// rendezvous lets a client know that a page is where it waits, and have it go on.
var rendezvous = struct{ entered, released chan struct{} }{make(chan struct{}), make(chan struct{})}

const rendezvousTime = 10 * time.Second

func meet(c chan struct{}, send bool) error {
	in, out := c, c
	if send {
		out = nil
	} else {
		in = nil
	}
	select {
	case in <- struct{}{}:
		return nil
	case <-out:
		return nil
	case <-time.After(rendezvousTime):
		return errors.New("nobody came")
	}
}

func (v *visit) wait() error {
	if err := meet(rendezvous.entered, true); err != nil {
		return err
	}
	return meet(rendezvous.released, false)
}

// pages are what the servers have, whatever their library.
var pages = map[string]func(v *visit) error{
	"read": func(*visit) error { return nil },
	"add":  func(v *visit) error { return v.addNumber(keyN, 1) },
	"set":  func(v *visit) error { return v.setText(v.arg("key"), v.arg("value")) },
	"page": func(v *visit) error {
		if err := v.setText(keyPage, strings.Repeat("0123456789abcdef", size/16)); err != nil {
			return err
		}
		return v.login("user-" + v.arg("n"))
	},
	"login":    func(v *visit) error { return v.login(v.arg("user")) },
	"logout":   func(v *visit) error { return v.logout() },
	"slowread": func(v *visit) error { return v.wait() },
	"slowset": func(v *visit) error {
		if err := v.setText(v.arg("key"), v.arg("value")); err != nil {
			return err
		}
		return v.wait()
	},
	// The client is to be gone when it logs out.
	"slowlogout": func(v *visit) error {
		if err := v.wait(); err != nil {
			return err
		}
		if v.r != nil {
			select {
			case <-v.r.Context().Done():
			case <-time.After(rendezvousTime):
				return errors.New("the client stays")
			}
		}
		return v.logout()
	},
	"flush": func(v *visit) error {
		if err := errors.Join(v.setText(keyA, v.arg("value")), v.finish()); err != nil {
			return err
		}
		return http.NewResponseController(v.w).Flush()
	},
	"early": func(v *visit) error {
		v.w.WriteHeader(http.StatusEarlyHints)
		return v.setText(keyA, v.arg("value"))
	},
	"late": func(v *visit) error {
		if _, err := v.w.Write([]byte("it begins; ")); err != nil {
			return err
		}
		return v.setText(keyA, v.arg("value"))
	},
	"five": func(v *visit) error { return errors.Join(v.setText(keyUID, exampleUID), four(v)) },
	"fivelogin": func(v *visit) error {
		return errors.Join(four(v), v.login(exampleUID))
	},
}

const exampleUID = "3f2b8c1e-9a54-4c6f-8d27-1f0e5b7a6c93"

// four are the values of a small session besides the user's id.
func four(v *visit) error {
	return errors.Join(v.setText(keyName, "Ada Lovelace."), v.setText(keyCSRF, "0f1e2d3c4b5a69788796a5b4c3d2e1f0"),
		v.addNumber(keyN, 7), v.addNumber(keySeen, 1790000000))
}

// show has a page of v run and returns what its answer says.
func (v *visit) show(page string) (string, error) {
	show, ok := pages[page]
	if !ok {
		return "", fmt.Errorf("no page %q", page)
	}
	if err := show(v); err != nil {
		return "", err
	}
	if err := v.finish(); err != nil {
		return "", err
	}
	return v.user() + "|" + v.text(keyA) + "|" + v.text(keyB) + "|" + strconv.FormatInt(v.number(keyN), 10) + "|" + strconv.Itoa(len(v.text(keyPage))), nil
}

// backstage is what is asked of a server besides, without a session.
var backstage = map[string]func() (string, error){
	"entered": func() (string, error) { return "", meet(rendezvous.entered, false) },
	"release": func() (string, error) { return "", meet(rendezvous.released, true) },
	"allocs": func() (string, error) {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return strconv.FormatUint(m.Mallocs, 10), nil
	},
}

// A netSite is a library for net/http.
type netSite struct {
	wrap func(http.Handler) http.Handler // its middleware; nil: it has none
	open func(w http.ResponseWriter, r *http.Request) (librarySession, error)
	kill func(ctx context.Context, user string) (n int, err error) // ends all sessions of a user's; nil: it cannot
}

// serve serves until the process ends.
func (s netSite) serve(c siteSetup) error {
	answer := func(w http.ResponseWriter, text string, err error) {
		if err != nil {
			http.Error(w, "failed: "+err.Error(), http.StatusInternalServerError)
			return
		}
		_, _ = w.Write([]byte(text)) // the client may be gone
	}
	var all http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		session, err := s.open(w, r)
		if err != nil {
			answer(w, "", err)
			return
		}
		query := r.URL.Query
		text, err := (&visit{session, func(name string) string { return query().Get(name) }, w, r}).show(r.URL.Path[1:])
		answer(w, text, err)
	})
	if s.wrap != nil {
		all = s.wrap(all)
	}
	mux := http.NewServeMux()
	mux.Handle("/", all)
	for name, ask := range backstage {
		mux.HandleFunc("/"+name, func(w http.ResponseWriter, _ *http.Request) {
			text, err := ask()
			answer(w, text, err)
		})
	}
	mux.HandleFunc("/kill", func(w http.ResponseWriter, r *http.Request) {
		if s.kill == nil {
			http.NotFound(w, r)
			return
		}
		n, err := s.kill(r.Context(), r.FormValue("user"))
		answer(w, strconv.Itoa(n), err)
	})
	return http.ListenAndServe(c.Listen, mux)
}
