package gorilla_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"

	"github.com/gorilla/securecookie"

	"github.com/sessile/sessile"
	"github.com/sessile/sessile/adapters/gorilla"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/memory"
)

func Example() {
	g, err := gorilla.New(memory.New(memory.Options{}), gorilla.Options{})
	if err != nil {
		panic(err)
	}
	visits := func(w http.ResponseWriter, r *http.Request) {
		session, err := g.Get(r, "session")
		if err == nil {
			n, _ := session.Values["visits"].(int)
			session.Values["visits"] = n + 1
			err = session.Save(r, w)
		}
		switch {
		case errors.Is(err, store.ErrConflict): // another request was first
			http.Error(w, "once more, please", http.StatusConflict)
		case err != nil:
			http.Error(w, "please try again in a moment", http.StatusServiceUnavailable)
		default:
			fmt.Fprint(w, session.Values["visits"])
		}
	}
	r := httptest.NewRequest("GET", "/", nil)
	for range 2 {
		w := httptest.NewRecorder()
		visits(w, r)
		fmt.Println(w.Body)
		r = httptest.NewRequest("GET", "/", nil)
		r.AddCookie(w.Result().Cookies()[0])
	}
	// Output:
	// 1
	// 2
}

// A site whose handlers stay as they are: it had boj/redistore, and its cookies and sessions stay good. The store is opened with the
// prefix of boj/redistore.
func ExampleOptions() {
	st := memory.New(memory.Options{}) // open.Store(ctx, u, open.Options{Prefix: "session_"})
	g, err := gorilla.New(st, gorilla.Options{
		Codecs: securecookie.CodecsFromPairs([]byte("the key that boj/redistore had")),
		Merge:  gorilla.MergeKeys,
	})
	if err != nil {
		panic(err)
	}
	session, err := g.Get(httptest.NewRequest("GET", "/", nil), "session")
	fmt.Println(session.IsNew, err)
	// Output: true <nil>
}

// A site that goes on with sessions of the library, and takes over those that boj/redistore has made.
func ExampleOrigin() {
	type visit struct{ Cart []string }
	old := memory.New(memory.Options{}) // the same Redis, opened with the prefix session_
	st := memory.New(memory.Options{})
	m, err := sessile.New[visit](st, sessile.Options{Secret: []byte("a secret of the site's")})
	if err != nil {
		panic(err)
	}
	codecs := securecookie.CodecsFromPairs([]byte("the key that boj/redistore had"))
	err = m.Adopt(gorilla.Origin("session", codecs, old, func(values map[any]any) (v visit, user string, err error) {
		v.Cart, _ = values["cart"].([]string)
		user, _ = values["user"].(string)
		return v, user, nil
	}))
	fmt.Println(err)
	// Output: <nil>
}
