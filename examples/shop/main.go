// Shop is a small site with sessions: a cart for everybody, a login that keeps it, the list of the devices on which one is logged in,
// and signing out on all of them.
//
//	go run ./examples/shop                                      sessions in this process
//	go run ./examples/shop -store redis://127.0.0.1:6379/0      or redis-sentinel://, redis-cluster://, mysql://, postgres:// ...
//
// It speaks plain HTTP, so its cookie is an insecure one. A real site leaves Cookie as it is.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"html/template"
	"log"
	"net/http"
	"time"

	"github.com/sessile/sessile"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/open"
)

// Visit is what the site keeps of a visitor.
type Visit struct {
	Cart   []string
	Device string // on which he has logged in
	Notes  sessile.Flash[string]
}

func notes(v *Visit) *sessile.Flash[string] { return &v.Notes }

type shop struct{ sessions *sessile.Manager[Visit] }

func main() {
	addr := flag.String("listen", "127.0.0.1:8080", "`address` to listen on")
	where := flag.String("store", "memory://", "`URL` of the store of the sessions")
	flag.Parse()
	handler, st, err := newShop(context.Background(), *where)
	if err != nil {
		log.Fatal(err)
	}
	defer st.Close()
	log.Print("http://", *addr)
	log.Fatal(http.ListenAndServe(*addr, handler))
}

func newShop(ctx context.Context, where string) (http.Handler, store.Store, error) {
	u, err := open.Parse(where)
	if err != nil {
		return nil, nil, err
	}
	st, err := open.Store(ctx, u, open.Options{Prefix: "shop:", Lifetime: 12 * time.Hour})
	if err != nil {
		return nil, nil, err
	}
	sessions, err := sessile.New[Visit](st, sessile.Options{Cookie: sessile.Cookie{Insecure: true}})
	if err != nil {
		return nil, nil, errors.Join(err, st.Close())
	}
	s := &shop{sessions}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.page(s.home))
	mux.HandleFunc("POST /cart", s.page(s.add))
	mux.HandleFunc("POST /login", s.page(s.login))
	mux.HandleFunc("POST /logout", s.page(s.logout))
	mux.HandleFunc("POST /revoke", s.page(s.revoke))
	return sessions.Handler(mux), st, nil
}

// page is a handler with the visitor's session. What cannot be done for want of the store is answered by 503, never by an empty cart.
func (s *shop) page(f func(w http.ResponseWriter, r *http.Request, v *sessile.Session[Visit]) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v, err := s.sessions.Get(r)
		if err == nil {
			err = f(w, r, v)
		}
		switch {
		case err == nil && r.Method == http.MethodPost:
			http.Redirect(w, r, "/", http.StatusSeeOther)
		case errors.Is(err, sessile.ErrGone): // logged out in another window
			http.Redirect(w, r, "/", http.StatusSeeOther)
		case err != nil:
			log.Print(err)
			http.Error(w, "Please try again in a moment.", http.StatusServiceUnavailable)
		}
	}
}

func (s *shop) home(w http.ResponseWriter, r *http.Request, v *sessile.Session[Visit]) error {
	user, _ := v.User()
	data := struct {
		Visit
		Notes    []string
		User     string
		Here     sessile.Key
		Sessions []sessile.Info[Visit]
	}{Visit: v.Value(), User: user, Here: v.Key()}
	var err error
	if data.Notes, err = sessile.Take(v, notes); err != nil {
		return err
	}
	if user != "" {
		if data.Sessions, err = s.sessions.Sessions(r.Context(), user); err != nil {
			return err
		}
	}
	return home.Execute(w, data)
}

func (s *shop) add(_ http.ResponseWriter, r *http.Request, v *sessile.Session[Visit]) error {
	item := r.FormValue("item")
	if item == "" || len(item) > 100 {
		return nil
	}
	// Two windows that add something at the same time both have it in the cart.
	return v.Update(func(v *Visit) error { v.Cart = append(v.Cart, item); return nil })
}

func (s *shop) login(_ http.ResponseWriter, r *http.Request, v *sessile.Session[Visit]) error {
	user, password := r.FormValue("user"), r.FormValue("password")
	if user == "" || password != "demo" { // a real site has users
		return v.Update(func(v *Visit) error { v.Notes.Add("The password is demo."); return nil })
	}
	device := r.UserAgent()
	if err := v.Update(func(v *Visit) error { v.Device = device; return nil }); err != nil && !errors.Is(err, sessile.ErrGone) {
		return err
	}
	return v.Login(r.Context(), user)
}

func (s *shop) logout(w http.ResponseWriter, r *http.Request, v *sessile.Session[Visit]) error {
	sessile.ClearSiteData(w.Header())
	return v.Logout(r.Context())
}

// revoke ends one session of the user, or all others.
func (s *shop) revoke(_ http.ResponseWriter, r *http.Request, v *sessile.Session[Visit]) error {
	user, _ := v.User()
	if user == "" {
		return nil
	}
	var n int
	var err error
	if key := r.FormValue("key"); key != "" {
		n, err = s.sessions.RevokeOnly(r.Context(), user, sessile.Key(key))
	} else {
		n, err = s.sessions.Revoke(r.Context(), user, v.Key())
	}
	if err != nil {
		return err
	}
	return v.Update(func(v *Visit) error { v.Notes.Add(fmt.Sprint("Signed out: ", n)); return nil })
}

var home = template.Must(template.New("").Parse(`<!doctype html><meta charset="utf-8"><title>Shop</title>
<style>body{font:16px/1.5 system-ui;max-width:40em;margin:2em auto;padding:0 1em}form{margin:.5em 0}</style>
<h1>Shop</h1>
{{range .Notes}}<p><b>{{.}}</b></p>{{end}}
<p>In your cart: {{range .Cart}}{{.}}; {{else}}nothing{{end}}</p>
<form method="post" action="/cart"><input name="item" placeholder="something"> <button>Add</button></form>
{{if .User}}
<p>You are {{.User}}.</p>
<form method="post" action="/logout"><button>Sign out</button></form>
<h2>Where you are signed in</h2>
{{range .Sessions}}<form method="post" action="/revoke">{{.Value.Device}}, since {{.Login.Format "2006-01-02 15:04"}}
{{if eq .Key $.Here}}(here){{else}}<input type="hidden" name="key" value="{{.Key}}"><button>Sign out there</button>{{end}}</form>
{{end}}
<form method="post" action="/revoke"><button>Sign out everywhere else</button></form>
{{else}}
<form method="post" action="/login"><input name="user" placeholder="name"> <input name="password" type="password" placeholder="password: demo"> <button>Sign in</button></form>
{{end}}
`))
