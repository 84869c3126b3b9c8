package main

import (
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

func TestShop(t *testing.T) {
	handler, st, err := newShop(t.Context(), "memory://")
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(handler)
	t.Cleanup(func() { srv.Close(); st.Close() })
	browser := func() func(path string, form ...string) string {
		jar, _ := cookiejar.New(nil)
		c := &http.Client{Jar: jar}
		return func(path string, form ...string) string {
			t.Helper()
			var resp *http.Response
			var err error
			if path == "/" {
				resp, err = c.Get(srv.URL)
			} else {
				values := url.Values{}
				for i := 0; i+1 < len(form); i += 2 {
					values.Set(form[i], form[i+1])
				}
				resp, err = c.PostForm(srv.URL+path, values)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, _ := io.ReadAll(resp.Body)
			return string(body)
		}
	}
	has := func(page string, words ...string) {
		t.Helper()
		for _, w := range words {
			if !strings.Contains(page, w) {
				t.Errorf("no %q in\n%s", w, page)
			}
		}
	}
	desk, phone := browser(), browser()
	has(desk("/"), "nothing", "password: demo")
	has(desk("/cart", "item", "tea"), "tea")
	has(desk("/login", "user", "alice", "password", "wrong"), "The password is demo.", "tea")
	has(desk("/login", "user", "alice", "password", "demo"), "You are alice", "tea", "(here)")
	has(phone("/login", "user", "alice", "password", "demo"), "nothing", "Sign out there")
	has(desk("/revoke"), "Signed out: 1")
	has(phone("/"), "password: demo")
	has(desk("/"), "You are alice")
	has(desk("/logout"), "nothing", "password: demo")

	r, _ := http.NewRequest("POST", srv.URL+"/cart", strings.NewReader("item=x"))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Sec-Fetch-Site", "cross-site")
	resp, err := http.DefaultClient.Do(r)
	if err != nil || resp.StatusCode != http.StatusForbidden {
		t.Errorf("another site's form: %v, %v", resp.Status, err)
	}
	resp.Body.Close()
}
