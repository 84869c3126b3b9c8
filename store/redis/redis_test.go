package redis

import (
	"context"
	"net/url"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store/storetest"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// open opens a store and closes it after the test.
func open(t testing.TB, text string) *Store {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	s, err := Open(ctx, u)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestConformance(t *testing.T) {
	for name, query := range map[string]string{"plain": "", "under a prefix": "?prefix=PHPREDIS_SESSION%3A", "one connection": "?connections=1",
		"tracked": "?track=yes&prefix=PHPREDIS_SESSION%3A"} {
		t.Run(name, func(t *testing.T) {
			server := testserver.Redis(t)
			storetest.RunTarget(t, storetest.Harness[*Store]{
				New: func(t *testing.T) *Store {
					server.Do("FLUSHALL")
					return open(t, server.URL()+"/3"+query)
				},
				Beside: func(t *testing.T, _ *Store) *Store { return open(t, server.URL()+"/3"+query) },
			})
		})
	}
}
