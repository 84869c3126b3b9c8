// Chi is the shop of examples/shop with chi, its pages in JSON: a cart for everybody, a login that keeps it, the list of the devices on
// which one is logged in, and signing out on all of them.
//
//	go run ./chi -store redis://127.0.0.1:6379/0      or redis-sentinel://, redis-cluster://, mysql://, postgres:// ...
//
// It speaks plain HTTP, so its cookie is an insecure one. A real site leaves Cookie as it is.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"net/http"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"

	"github.com/sessile/sessile"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/open"
)

// visit is what the site keeps of a visitor.
type visit struct {
	Cart     []string
	Device   string // on which he has logged in
	Mistakes int    // passwords that were none
	Streams  int    // that he has opened
}

type shop struct{ sessions *sessile.Manager[visit] }

func main() {
	addr := flag.String("listen", "127.0.0.1:8080", "`address` to listen on")
	where := flag.String("store", "memory://", "`URL` of the store of the sessions")
	flag.Parse()
	u, err := open.Parse(*where)
	if err != nil {
		log.Fatal(err)
	}
	st, err := open.Store(context.Background(), u, open.Options{Prefix: "shop:", Lifetime: 12 * time.Hour})
	if err != nil {
		log.Fatal(err)
	}
	defer st.Close()
	handler, err := newShop(st)
	if err != nil {
		log.Fatal(err)
	}
	log.Print("http://", *addr)
	log.Fatal(http.ListenAndServe(*addr, handler))
}

func newShop(st store.Store) (http.Handler, error) {
	sessions, err := sessile.New[visit](st, sessile.Options{Cookie: sessile.Cookie{Insecure: true}})
	if err != nil {
		return nil, err
	}
	s := &shop{sessions}
	r := chi.NewRouter()
	r.Use(middleware.Recoverer) // before the sessions: a handler that panics has changed none
	r.Use(sessions.Handler)
	r.Get("/", s.page(s.home))
	r.Get("/events", s.page(s.events))
	r.Post("/cart", s.page(s.add))
	r.Post("/login", s.page(s.login))
	r.Post("/logout", s.page(s.logout))
	r.Post("/revoke", s.page(s.revoke))
	return r, nil
}

type page func(w http.ResponseWriter, r *http.Request, v *sessile.Session[visit]) error

// page is a handler with the visitor's session. What cannot be done for want of the store is answered by 503, never by an empty cart.
func (s *shop) page(f page) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v, err := s.sessions.Get(r)
		if err == nil {
			err = f(w, r, v)
		}
		switch {
		case err == nil:
		case errors.Is(err, sessile.ErrGone): // logged out in another window
			http.Redirect(w, r, "/", http.StatusSeeOther)
		default:
			log.Print(err)
			http.Error(w, "Please try again in a moment.", http.StatusServiceUnavailable)
		}
	}
}

func (s *shop) home(w http.ResponseWriter, r *http.Request, v *sessile.Session[visit]) error {
	type device struct {
		Name string
		Here bool
		Key  sessile.Key // for /revoke
	}
	user, _ := v.User()
	var devices []device
	if user != "" {
		list, err := s.sessions.Sessions(r.Context(), user)
		if err != nil {
			return err
		}
		for _, d := range list {
			devices = append(devices, device{d.Value.Device, d.Key == v.Key(), d.Key})
		}
	}
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(map[string]any{"user": user, "visit": v.Value(), "devices": devices})
}

func (s *shop) add(w http.ResponseWriter, r *http.Request, v *sessile.Session[visit]) error {
	item := r.FormValue("item")
	if item == "" || len(item) > 100 {
		http.Error(w, "What shall it be?", http.StatusBadRequest)
		return nil
	}
	// Two windows that add something at the same time both have it in the cart.
	if err := v.Update(func(v *visit) error { v.Cart = append(v.Cart, item); return nil }); err != nil {
		return err
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
	return nil
}

func (s *shop) login(w http.ResponseWriter, r *http.Request, v *sessile.Session[visit]) error {
	user, device := r.FormValue("user"), r.UserAgent()
	if user == "" || r.FormValue("password") != "demo" { // a real site has users
		if err := v.Update(func(v *visit) error { v.Mistakes++; return nil }); err != nil {
			return err
		}
		http.Error(w, "The password is demo.", http.StatusUnauthorized)
		return nil
	}
	if err := v.Update(func(v *visit) error { v.Device = device; return nil }); err != nil && !errors.Is(err, sessile.ErrGone) {
		return err
	}
	if err := v.Login(r.Context(), user); err != nil {
		return err
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
	return nil
}

func (s *shop) logout(w http.ResponseWriter, r *http.Request, v *sessile.Session[visit]) error {
	if err := v.Logout(r.Context()); err != nil {
		return err
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
	return nil
}

// revoke ends one session of the user, or all others.
func (s *shop) revoke(w http.ResponseWriter, r *http.Request, v *sessile.Session[visit]) (err error) {
	user, _ := v.User()
	if user == "" {
		http.Error(w, "Who are you?", http.StatusUnauthorized)
		return nil
	}
	if key := r.FormValue("key"); key != "" {
		_, err = s.sessions.RevokeOnly(r.Context(), user, sessile.Key(key))
	} else {
		_, err = s.sessions.Revoke(r.Context(), user, v.Key())
	}
	if err != nil {
		return err
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
	return nil
}

// events is a stream. What is changed before it begins would be saved by its first Flush, but where that fails it should not begin.
func (s *shop) events(w http.ResponseWriter, r *http.Request, v *sessile.Session[visit]) error {
	if err := v.Update(func(v *visit) error { v.Streams++; return nil }); err != nil {
		return err
	}
	if err := v.Save(r.Context()); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/event-stream")
	rc := http.NewResponseController(w)
	for tick := time.Tick(time.Second); ; {
		if err := rc.Flush(); err != nil {
			return nil // the client is gone
		}
		select {
		case now := <-tick:
			fmt.Fprintf(w, "event: time\ndata: %s\n\n", now.Format(time.TimeOnly))
		case <-r.Context().Done():
			return nil
		}
	}
}
