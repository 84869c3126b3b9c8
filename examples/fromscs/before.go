package main

import (
	"net/http"

	"github.com/alexedwards/scs/goredisstore"
	"github.com/alexedwards/scs/v2"
	"github.com/redis/go-redis/v9"
)

// oldSessions are set up as the site always had them.
func oldSessions(client *redis.Client) *scs.SessionManager {
	sessions := scs.New()
	sessions.Store = goredisstore.New(client)
	return sessions
}

func before(sessions *scs.SessionManager) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		cart, _ := sessions.Get(r.Context(), "cart").([]string)
		page(w, sessions.GetString(r.Context(), "user"), cart)
	})
	mux.HandleFunc("POST /cart", func(w http.ResponseWriter, r *http.Request) {
		cart, _ := sessions.Get(r.Context(), "cart").([]string)
		sessions.Put(r.Context(), "cart", append(cart, r.FormValue("item")))
	})
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		if !mayLogin(r) {
			http.Error(w, "The password is demo.", http.StatusForbidden)
			return
		}
		if err := sessions.RenewToken(r.Context()); err != nil {
			http.Error(w, "Please try again in a moment.", http.StatusServiceUnavailable)
			return
		}
		sessions.Put(r.Context(), "user", r.FormValue("user"))
	})
	mux.HandleFunc("POST /logout", func(w http.ResponseWriter, r *http.Request) {
		if err := sessions.Destroy(r.Context()); err != nil {
			http.Error(w, "Please try again in a moment.", http.StatusServiceUnavailable)
		}
	})
	return sessions.LoadAndSave(mux)
}
