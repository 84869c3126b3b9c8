package sessile_test

import (
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/sessile/sessile"
	"go.uber.org/goleak"
)

func mustURL(t *testing.T, text string) *url.URL {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// cookied is another window of the browser, which has the cookie with that value.
func (b *browser) cookied(value string) *browser {
	jar, _ := cookiejar.New(nil)
	jar.SetCookies(mustURL(b.t, b.url), []*http.Cookie{{Name: "session", Value: value}})
	return &browser{b.t, b.url, &http.Client{Jar: jar}}
}

// loggedIn makes a session.
func loggedIn[T any](t *testing.T, m *sessile.Manager[T], user string, value T) (key sessile.Key) {
	t.Helper()
	m.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		s, err := m.Get(r)
		if err == nil {
			err = s.Update(func(v *T) error { *v = value; return nil })
		}
		if err == nil {
			err = s.Login(r.Context(), user)
		}
		if err != nil {
			t.Fatal(err)
		}
		key = s.Key()
	})).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
	return key
}

// TestMain sees that nothing goes on when all is closed.
func TestMain(m *testing.M) { goleak.VerifyTestMain(tests{m}) }

type tests struct{ *testing.M }

func (t tests) Run() int {
	defer http.DefaultClient.CloseIdleConnections()
	return t.M.Run()
}
