package sessile_test

import (
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"testing"
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
