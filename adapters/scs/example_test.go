package scsstore_test

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"

	"github.com/alexedwards/scs/v2"
	"github.com/sessile/sessile"
	scsstore "github.com/sessile/sessile/adapters/scs"
	"github.com/sessile/sessile/store/memory"
)

// A site that has scs, and goes on with it.
func ExampleNew() {
	st, err := scsstore.New(memory.New(memory.Options{}), scsstore.Options{}) // redis.Connect(ctx, redis.Options{Addr: ..., Prefix: "scs:session:"})
	if err != nil {
		log.Fatal(err)
	}
	sessions := scs.New()
	sessions.Store = st
	sessions.ErrorFunc = scsstore.ErrorFunc(sessions.ErrorFunc)

	handler := sessions.LoadAndSave(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sessions.Put(r.Context(), "visits", sessions.GetInt(r.Context(), "visits")+1)
		fmt.Fprint(w, sessions.GetInt(r.Context(), "visits"))
	}))
	cookie := ask(handler, nil)
	ask(handler, cookie)
	// Output:
	// 1
	// 2
}

// A site that had scs, and has sessions of package sessile now.
func ExampleOrigin() {
	old := scs.New() // as it was set up
	handler := old.LoadAndSave(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		old.Put(r.Context(), "user", "alice")
		old.Put(r.Context(), "cart", []string{"tea"})
	}))
	cookie := ask(handler, nil)

	type visit struct{ Cart []string }
	sessions, err := sessile.New[visit](memory.New(memory.Options{}), sessile.Options{Secret: []byte("random bytes, the same in all processes"), Cookie: sessile.Cookie{Insecure: true}})
	if err != nil {
		log.Fatal(err)
	}
	err = sessions.Adopt(scsstore.Origin(old, func(values map[string]any) (v visit, user string, err error) {
		v.Cart, _ = values["cart"].([]string)
		user, _ = values["user"].(string)
		return v, user, nil
	}))
	if err != nil {
		log.Fatal(err)
	}
	ask(sessions.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s, err := sessions.Get(r)
		if err != nil {
			http.Error(w, "Please try again in a moment.", http.StatusServiceUnavailable)
			return
		}
		user, _ := s.User()
		fmt.Fprint(w, user, s.Value().Cart)
	})), cookie)
	// Output:
	//
	// alice[tea]
}

// ask prints a page, and returns the cookie that it sets.
func ask(handler http.Handler, cookie *http.Cookie) *http.Cookie {
	r, w := httptest.NewRequest("GET", "/", nil), httptest.NewRecorder()
	if cookie != nil {
		r.AddCookie(cookie)
	}
	handler.ServeHTTP(w, r)
	resp := w.Result()
	body, _ := io.ReadAll(resp.Body)
	fmt.Println(string(body))
	for _, c := range resp.Cookies() {
		return c
	}
	return nil
}
