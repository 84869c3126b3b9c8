package sessile

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Cookie says how the cookie is called and what it may be used for. Its zero value is the safest one: __Host-session, for HTTPS
// and this host only, not for scripts, not for requests that other sites make (but for links to this one), gone with the browser.
type Cookie struct {
	// Name defaults to "__Host-session", or, where the cookie may not be called that, to "session".
	Name string
	// Domain, if it is not "", has all hosts below it get the cookie.
	Domain string
	// Path defaults to "/".
	Path string
	// SameSite defaults to http.SameSiteLaxMode.
	SameSite http.SameSite
	// Insecure sends the cookie over plain HTTP, too: for tests.
	Insecure bool
	// Persistent keeps it when the browser ends, for as long as the session may last, but no longer than 400 days, which is what browsers allow
	// (RFC 6265bis).
	Persistent bool
	// Partitioned gives each site that embeds this one a cookie of its own (CHIPS, which is not in RFC 6265bis).
	Partitioned bool
}

func (c *Cookie) complete() error {
	host := c.Domain == "" && (c.Path == "" || c.Path == "/") && !c.Insecure
	if c.Name == "" {
		if c.Name = "session"; host {
			c.Name = "__Host-session"
		}
	}
	if c.Path == "" {
		c.Path = "/"
	}
	if c.SameSite == 0 || c.SameSite == http.SameSiteDefaultMode {
		c.SameSite = http.SameSiteLaxMode
	}
	lower := strings.ToLower(c.Name)
	switch {
	case strings.HasPrefix(lower, "__host-") && !host:
		return errors.New("sessile: a cookie called __Host- is for HTTPS, this host and the path / only: browsers refuse it")
	case strings.HasPrefix(lower, "__secure-") && c.Insecure:
		return errors.New("sessile: a cookie called __Secure- is for HTTPS only: browsers refuse it")
	case c.SameSite == http.SameSiteNoneMode && c.Insecure:
		return errors.New("sessile: SameSite=None is for HTTPS only: browsers refuse it")
	case c.Domain != "" && (net.ParseIP(c.Domain) != nil || !strings.Contains(strings.Trim(c.Domain, "."), ".")):
		return fmt.Errorf("sessile: %s is no domain that a cookie may be for: browsers refuse it", c.Domain)
	case c.Partitioned && c.Insecure:
		return errors.New("sessile: Partitioned is for HTTPS only: browsers refuse it")
	}
	return c.made("", "x", 0).Valid()
}

// read returns the value of the cookie, or of one whose name is longer by suffix, in a request, "" for none. Of two that differ none
// counts: one of them was put there by somebody else (another host below the same domain), and nobody knows which. It is as it was
// sent, with quotes, say, that no value of ours has.
func (c *Cookie) read(r *http.Request, suffix string) (value string, ok bool) {
	found := false
	for _, line := range r.Header["Cookie"] {
		for more := true; more; {
			var pair string
			pair, line, more = strings.Cut(line, ";")
			name, text, _ := strings.Cut(strings.Trim(pair, " \t"), "=")
			if rest, ok := strings.CutPrefix(name, c.Name); !ok || rest != suffix {
				continue
			}
			if found && text != value {
				return "", false
			}
			value, found = text, true
		}
	}
	return value, true
}

func (c *Cookie) made(suffix, value string, life time.Duration) *http.Cookie {
	return &http.Cookie{Name: c.Name + suffix, Value: value, Domain: c.Domain, Path: c.Path, Secure: !c.Insecure, HttpOnly: true,
		SameSite: c.SameSite, Partitioned: c.Partitioned, MaxAge: int(life / time.Second)}
}

const maxAge = 400 * 24 * time.Hour

// set sets the cookie, or one whose name is longer by suffix, in a response, or its end where value is "". life is that of one that stays.
func (c *Cookie) set(h http.Header, suffix, value string, life time.Duration) {
	if life = min(life, maxAge); !c.Persistent {
		life = 0
	}
	cookie := c.made(suffix, value, life)
	if value == "" {
		cookie.MaxAge = -1
	}
	lines := slices.DeleteFunc(h["Set-Cookie"], func(line string) bool { return strings.HasPrefix(line, c.Name+suffix+"=") })
	h["Set-Cookie"] = append(lines, cookie.String())
	noStore(h)
}

func noStore(h http.Header) {
	// A cache between would give one user's cookie to another one. Some have no-cache="Set-Cookie" for that, which caches ignore.
	if now := strings.ToLower(h.Get("Cache-Control")); !strings.Contains(now, "no-store") && !strings.Contains(now, "private") {
		h.Set("Cache-Control", "no-store")
	}
}

// ClearSiteData has the browser forget what it keeps of this site besides cookies, for the page that answers a logout: pages in its cache,
// and what scripts have stored. (Browsers do that over HTTPS only. It could have them forget cookies, too, but those are then of all
// hosts below the same domain; Logout takes away its own.)
func ClearSiteData(h http.Header) { h.Set("Clear-Site-Data", `"cache", "storage"`) }
