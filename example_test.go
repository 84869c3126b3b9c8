package sessile_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"time"

	"github.com/sessile/sessile"
	"github.com/sessile/sessile/store/memory"
	"github.com/sessile/sessile/store/redis"
)

// A cart for everybody, whether logged in or not.
func Example() {
	type Cart struct{ Items []string }
	sessions, err := sessile.New[Cart](memory.New(memory.Options{}), sessile.Options{Cookie: sessile.Cookie{Insecure: true}}) // Insecure: this example has no TLS
	if err != nil {
		log.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /cart", func(w http.ResponseWriter, r *http.Request) {
		s, err := sessions.Get(r)
		if err == nil {
			err = s.Update(func(c *Cart) error { c.Items = append(c.Items, r.FormValue("item")); return nil })
		}
		if err != nil {
			http.Error(w, "Please try again.", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprint(w, s.Value().Items)
	})
	site := httptest.NewServer(sessions.Handler(mux))
	defer site.Close()

	jar, _ := cookiejar.New(nil)
	browser := http.Client{Jar: jar}
	for _, item := range []string{"bread", "milk"} {
		resp, err := browser.PostForm(site.URL+"/cart", url.Values{"item": {item}})
		if err != nil {
			log.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		fmt.Println(string(body))
	}
	// Output:
	// [bread]
	// [bread milk]
}

// Somebody logs in, and confirms his password before he pays.
func ExampleSession_Login() {
	sessions, err := sessile.New[struct{}](memory.New(memory.Options{}), sessile.AAL2())
	if err != nil {
		log.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		s, err := sessions.Get(r)
		if err == nil { // and the password is right
			err = s.Login(r.Context(), r.FormValue("user"))
		}
		if err != nil {
			http.Error(w, "Please try again.", http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("POST /pay", func(w http.ResponseWriter, r *http.Request) {
		s, err := sessions.Get(r)
		switch {
		case err != nil:
			http.Error(w, "Please try again.", http.StatusServiceUnavailable)
		case !s.Fresh(5 * time.Minute):
			http.Redirect(w, r, "/login", http.StatusSeeOther)
		default:
			user, since := s.User()
			fmt.Fprintln(w, user, since)
		}
	})
	_ = sessions.Handler(mux)
}

// A page with the devices on which somebody is logged in, and a button that ends all but this one.
func ExampleManager_Revoke() {
	type Visit struct{ Device string }
	sessions, err := sessile.New[Visit](memory.New(memory.Options{}), sessile.Options{})
	if err != nil {
		log.Fatal(err)
	}
	others := func(w http.ResponseWriter, r *http.Request) error {
		s, err := sessions.Get(r)
		if err != nil {
			return err
		}
		user, _ := s.User()
		list, err := sessions.Sessions(r.Context(), user)
		if err != nil {
			return err
		}
		for _, one := range list {
			fmt.Fprintln(w, one.Value.Device, one.Login, one.Key == s.Key())
		}
		_, err = sessions.Revoke(r.Context(), user, s.Key())
		return err
	}
	_ = others
}

// A change that fails changes nothing; one whose session was destroyed meanwhile has nothing to change.
func ExampleSession_Update() {
	type Account struct{ Tries int }
	errTooOften := errors.New("too often")
	try := func(s *sessile.Session[Account]) error {
		err := s.Update(func(a *Account) error {
			if a.Tries == 3 {
				return errTooOften
			}
			a.Tries++ // may run again, on what another request has saved
			return nil
		})
		if errors.Is(err, sessile.ErrGone) {
			return nil // logged out in another window
		}
		return err
	}
	_ = try
}

// "Saved." on the next page, once.
func ExampleTake() {
	type Visit struct{ Notes sessile.Flash[string] }
	var s *sessile.Session[Visit] // of Manager.Get
	save := func() error {
		return s.Update(func(v *Visit) error { v.Notes.Add("Saved."); return nil })
	}
	show := func(w io.Writer) error {
		notes, err := sessile.Take(s, func(v *Visit) *sessile.Flash[string] { return &v.Notes })
		for _, note := range notes {
			fmt.Fprintln(w, note)
		}
		return err
	}
	_, _ = save, show
}

// In Redis behind three Sentinels, encrypted, with copies in this process.
func ExampleNew() {
	u, err := url.Parse("redis-sentinel://s1:26379,s2:26379,s3:26379/mymaster/0?prefix=shop:&track=yes")
	if err != nil {
		log.Fatal(err)
	}
	st, err := redis.Open(context.Background(), u) // no error where it is away: it may come back
	if err != nil {
		log.Fatal(err)
	}
	defer st.Close()
	sessions, err := sessile.New[struct{ Cart []string }](st, sessile.Options{
		Idle: time.Hour, Absolute: 24 * time.Hour,
		Secret:  []byte("from where the site keeps its secrets"),
		Encrypt: [][]byte{make([]byte, 32)}, // from there, too
		Near:    5 * time.Second,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer sessions.Close()
	log.Fatal(http.ListenAndServe(":8080", sessions.Handler(http.NotFoundHandler())))
}
