package sessile_test

import (
	"fmt"
	"net/http"

	"github.com/sessile/sessile"
	"github.com/sessile/sessile/store/memory"
)

func Example() {
	type Cart struct{ Items []string }
	sessions, err := sessile.New[Cart](memory.New(memory.Options{}), sessile.Options{})
	if err != nil {
		panic(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /cart", func(w http.ResponseWriter, r *http.Request) {
		s, err := sessions.Get(r)
		if err == nil {
			err = s.Update(func(c *Cart) error { c.Items = append(c.Items, r.FormValue("item")); return nil })
		}
		if err != nil {
			http.Error(w, "try again", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, len(s.Value().Items), "items")
	})
	// http.ListenAndServe(":8080", sessions.Handler(mux))
	_ = sessions.Handler(mux)
	// Output:
}
