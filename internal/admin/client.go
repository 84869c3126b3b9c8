package admin

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"
)

// ErrUnreachable: nobody answered, or not to the end.
var ErrUnreachable = errors.New("the gateway does not answer")

// Error is what the API answered to a command that failed.
type Error struct{ Line }

func (e *Error) Error() string { return e.Line.Error }

// Client asks the API of one gateway.
type Client struct {
	address string // for messages
	base    string
	token   string
	http    *http.Client
}

// NewClient returns a client of the API at address: host:port, https://host:port or unix:/path. caFile names
// authorities to trust besides the system's. A token does not travel unencrypted.
func NewClient(address, token, caFile string) (*Client, error) {
	c := &Client{address: address, base: "http://" + address, token: token}
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	tr := &http.Transport{DialContext: dialer.DialContext, DisableCompression: true, TLSHandshakeTimeout: 5 * time.Second}
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		c.base = "http://localhost"
		tr.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return dialer.DialContext(ctx, "unix", path) }
	} else if strings.HasPrefix(address, "https://") {
		c.base = address
	}
	u, err := url.Parse(c.base)
	if err != nil || u.Host == "" || u.Path != "" || u.User != nil || u.RawQuery != "" {
		return nil, errors.New("the admin address is to be host:port, https://host:port or unix:/path")
	}
	if ip, err := netip.ParseAddr(u.Hostname()); u.Scheme == "http" && token != "" && u.Hostname() != "localhost" && (err != nil || !ip.IsLoopback()) {
		return nil, errors.New("the admin token would travel unencrypted: write https://" + u.Host)
	}
	if caFile != "" {
		pem, err := os.ReadFile(caFile)
		if err != nil {
			return nil, err
		}
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s: no certificate in it", caFile)
		}
		tr.TLSClientConfig = &tls.Config{RootCAs: pool}
	}
	c.http = &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return c, nil
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// do sends one request. An answer that is no success is an *Error.
func (c *Client) do(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, r)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	e := &Error{}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&e.Line); err != nil || e.Line.Error == "" {
		return nil, fmt.Errorf("%s at %s: is it a sessile gateway's admin address?", resp.Status, c.address)
	}
	if resp.StatusCode == http.StatusUnauthorized {
		e.Line.Error = "the gateway asks for a token: --admin-token-file or SESSILE_ADMIN_TOKEN_FILE"
	}
	e.Exit = cmp.Or(e.Exit, ExitFailed)
	return nil, e
}

func (c *Client) unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if ue := (*url.Error)(nil); errors.As(err, &ue) {
		err = ue.Err
	}
	return fmt.Errorf("%w at %s: %w", ErrUnreachable, c.address, err)
}

// Sites lists the gateway's sites.
func (c *Client) Sites(ctx context.Context) (sites []SiteInfo, err error) {
	b, err := c.Get(ctx, "/v1/sites")
	if err == nil {
		err = json.Unmarshal(b, &sites)
	}
	return sites, err
}

// Get returns the JSON that lies under path. An answer that is an error is an *Error.
func (c *Client) Get(ctx context.Context, path string) (json.RawMessage, error) {
	resp, err := c.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	e := &Error{}
	if err := json.Unmarshal(b, &e.Line); err == nil && e.Line.Error != "" {
		return nil, e
	}
	return b, nil
}

func again(err error) error { return fmt.Errorf("%w; run the command again to finish it", err) }

// Run runs a command, such as migrate/create, to its end, and tells say what goes on. What ends ctx ends the command.
func (c *Client) Run(ctx context.Context, site, command string, req Request, say func(string)) (Line, error) {
	resp, err := c.do(ctx, http.MethodPost, "/v1/sites/"+url.PathEscape(site)+"/"+command, req)
	if errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.EOF) { // it may have begun
		err = again(err)
	}
	if err != nil {
		return Line{}, err
	}
	defer resp.Body.Close()
	for d := json.NewDecoder(resp.Body); ; {
		var l Line
		if err := d.Decode(&l); err != nil {
			if errors.Is(err, io.EOF) {
				err = errors.New("it went away")
			}
			return Line{}, again(c.unreachable(ctx, err))
		}
		switch {
		case l.Error != "":
			return l, &Error{l}
		case l.Done:
			return l, nil
		default:
			say(l.Say)
		}
	}
}
