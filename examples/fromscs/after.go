package main

import (
	"context"
	"errors"
	"log"
	"net/http"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/sessile/sessile"
	scsstore "github.com/sessile/sessile/adapters/scs"
	"github.com/sessile/sessile/store/redis"
)

// Visit is what the site keeps of a visitor.
type Visit struct{ Cart []string }

// visitOf is a visit of before: the only thing that knows how that was kept.
func visitOf(values map[string]any) (v Visit, user string, err error) {
	v.Cart, _ = values["cart"].([]string)
	user, _ = values["user"].(string)
	return v, user, nil
}

// after is the site, which is over when end is called.
func after(ctx context.Context, addr, secret string, old *scs.SessionManager) (site http.Handler, end func() error, err error) {
	if secret == "" {
		return nil, nil, errors.New("SHOP_SECRET is not set: some random bytes, the same in all processes of the site")
	}
	st, err := redis.Connect(ctx, redis.Options{Addr: addr, Prefix: "shop:"})
	if err != nil {
		return nil, nil, err
	}
	sessions, err := sessile.New[Visit](st, sessile.Options{
		Secret:   []byte(secret),
		Absolute: 24 * time.Hour, // scs' Lifetime
		Idle:     24 * time.Hour, // scs has no IdleTimeout by default
		// scs' cookies stay when the browser ends, by default; and it is an example without HTTPS.
		Cookie: sessile.Cookie{Persistent: true, Insecure: true},
	})
	if err == nil {
		err = sessions.Adopt(scsstore.Origin(old, visitOf)) // goes away, with before.go, a Lifetime later
	}
	if err != nil {
		return nil, nil, errors.Join(err, st.Close())
	}

	mux := http.NewServeMux()
	handle := func(pattern string, f func(w http.ResponseWriter, r *http.Request, s *sessile.Session[Visit]) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			s, err := sessions.Get(r)
			if err == nil {
				err = f(w, r, s)
			}
			if err != nil && !errors.Is(err, sessile.ErrGone) { // logged out in another window
				log.Print(err)
				http.Error(w, "Please try again in a moment.", http.StatusServiceUnavailable)
			}
		})
	}
	handle("GET /{$}", func(w http.ResponseWriter, _ *http.Request, s *sessile.Session[Visit]) error {
		user, _ := s.User()
		page(w, user, s.Value().Cart)
		return nil
	})
	handle("POST /cart", func(_ http.ResponseWriter, r *http.Request, s *sessile.Session[Visit]) error {
		return s.Update(func(v *Visit) error { v.Cart = append(v.Cart, r.FormValue("item")); return nil })
	})
	handle("POST /login", func(w http.ResponseWriter, r *http.Request, s *sessile.Session[Visit]) error {
		if !mayLogin(r) {
			http.Error(w, "The password is demo.", http.StatusForbidden)
			return nil
		}
		return s.Login(r.Context(), r.FormValue("user"))
	})
	handle("POST /logout", func(_ http.ResponseWriter, r *http.Request, s *sessile.Session[Visit]) error {
		return s.Logout(r.Context())
	})
	return sessions.Handler(mux), st.Close, nil
}
