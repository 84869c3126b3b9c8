package main

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/file"
)

// What the gateway lets through as the id of a PHP session, the files can hold: else it would be written into the target
// and never into them.
func TestIDsOfAPHPSite(t *testing.T) {
	files, err := file.Open(t.Context(), t.TempDir(), file.Options{Lifetime: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	defer files.Close()
	ids := []string{""}
	for n := 1; n <= 257; n++ {
		ids = append(ids, strings.Repeat("a", n))
	}
	for b := range 256 {
		ids = append(ids, "a"+string([]byte{byte(b)})+"z")
	}
	for _, id := range ids {
		_, err := files.Load(t.Context(), id)
		if got, want := phpID(id), !errors.Is(err, store.ErrInvalid); got != want {
			t.Errorf("an id of %d bytes, %.10q: let through: %v; the files say %v", len(id), id, got, err)
		}
	}
}
