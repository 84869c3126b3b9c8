package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"

	"github.com/sessile/sessile/internal/testserver"
)

// A contestant is one way for an application to reach the servers, from two places: its doors. Each opens what one
// writer has there.
type contestant struct {
	name  string
	db    int // its own, but in a Cluster, which has only one
	doors []func() client
	procs []*proc  // Sessile's gateways
	admin []string // their sockets
	close func()
}

// A dialer connects from one place.
type dialer func(ctx context.Context, network, addr string) (net.Conn, error)

func dialFrom(h *testserver.Host) dialer {
	if h == nil {
		return new(net.Dialer).DialContext
	}
	return h.Dial
}

// database returns n, or that of a Cluster.
func (b *bed) database(n int) int {
	if b.cluster != nil {
		return 0
	}
	return n
}

// sessile starts a gateway at each place. Its clients come over a unix socket, which no network is between.
func (b *bed) sessile(name string, params url.Values, flags ...string) *contestant {
	b.t.Helper()
	c := &contestant{name: name, db: b.database(len(b.gateways)), close: func() {}} // they go on from run to run, as they have to remember
	u, err := url.Parse(b.url)
	if err != nil {
		b.t.Fatal(err)
	}
	q := u.Query()
	for name, values := range params {
		q[name] = values
	}
	if u.RawQuery = q.Encode(); c.db > 0 {
		u.Path = strings.TrimSuffix(u.Path, "0") + strconv.Itoa(c.db)
	}
	for _, h := range b.places {
		base := filepath.Join(b.run.dir, fmt.Sprint("gateway", len(b.run.procs)))
		argv := []string{b.run.sessile, "serve", "--listen=redis+unix://" + base + ".sock", "--admin=unix:" + base + ".admin", "--target=" + u.String()}
		argv = append(argv, flags...)
		if h != nil {
			argv = h.Command(argv[0], argv[1:]...).Args
		}
		p, err := b.run.start("unix", base+".sock", argv...)
		if err != nil {
			b.t.Fatal(err)
		}
		c.procs, c.admin = append(c.procs, p), append(c.admin, base+".admin")
		c.doors = append(c.doors, func() client { return &plain{path: base + ".sock"} })
	}
	return c
}

// says is what the gateways of a contestant count of their target, together. Peers say nothing.
func (c *contestant) says(t *testing.T) map[string]float64 {
	t.Helper()
	sum := map[string]float64{}
	for _, path := range c.admin {
		h := http.Client{Timeout: recovery, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}}}
		resp, err := h.Get("http://localhost/metrics")
		if err != nil {
			t.Fatal(err)
		}
		for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
			// sessile_gateway_target_put_back_total{site="default"} 12
			name, value, _ := strings.Cut(lines.Text(), "} ")
			name, _, _ = strings.Cut(name, "{")
			if name, ours := strings.CutPrefix(name, "sessile_gateway_target_"); ours && strings.HasSuffix(name, "_total") {
				n, _ := strconv.ParseFloat(value, 64)
				sum[strings.TrimSuffix(name, "_total")] += n
			}
		}
		resp.Body.Close()
	}
	return sum
}

// goRedis has a client with its defaults at each place.
func (b *bed) goRedis() *contestant {
	var all []goredis.UniversalClient
	c := &contestant{name: "go-redis", db: b.database(8), close: func() {
		for _, gc := range all {
			gc.Close()
		}
	}}
	for _, h := range b.places {
		var gc goredis.UniversalClient
		if b.cluster != nil {
			gc = goredis.NewClusterClient(&goredis.ClusterOptions{Addrs: b.addrs, Dialer: dialFrom(h)})
		} else {
			gc = goredis.NewFailoverClient(&goredis.FailoverOptions{MasterName: b.sentinels.Name, SentinelAddrs: b.addrs, DB: c.db, Dialer: dialFrom(h)})
		}
		all = append(all, gc)
		c.doors = append(c.doors, func() client { return goRedisClient{gc} })
	}
	return c
}

type goRedisClient struct{ goredis.UniversalClient }

func (c goRedisClient) set(ctx context.Context, key, value string) error {
	return c.Set(ctx, key, value, 10*time.Minute).Err()
}

func (c goRedisClient) del(ctx context.Context, key string) error { return c.Del(ctx, key).Err() }

func (c goRedisClient) close() {} // others have it, too

// rueidis has a client with its defaults at each place.
func (b *bed) rueidis() *contestant {
	var all []rueidis.Client
	c := &contestant{name: "rueidis", db: b.database(9), close: func() {
		for _, rc := range all {
			rc.Close()
		}
	}}
	for _, h := range b.places {
		o := rueidis.ClientOption{InitAddress: b.addrs, SelectDB: c.db}
		if b.sentinels != nil {
			o.Sentinel.MasterSet = b.sentinels.Name
		}
		dial := dialFrom(h)
		o.DialCtxFn = func(ctx context.Context, addr string, d *net.Dialer, _ *tls.Config) (net.Conn, error) {
			if d.Timeout > 0 { // which is left to this function
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, d.Timeout)
				defer cancel()
			}
			return dial(ctx, "tcp", addr)
		}
		rc, err := rueidis.NewClient(o)
		if err != nil {
			b.t.Fatal(err)
		}
		all = append(all, rc)
		c.doors = append(c.doors, func() client { return rueidisClient{rc} })
	}
	return c
}

type rueidisClient struct{ rueidis.Client }

func (c rueidisClient) set(ctx context.Context, key, value string) error {
	return c.Do(ctx, c.B().Set().Key(key).Value(value).Ex(10*time.Minute).Build()).Error()
}

func (c rueidisClient) del(ctx context.Context, key string) error {
	return c.Do(ctx, c.B().Del().Key(key).Build()).Error()
}

func (c rueidisClient) close() {}

// silent is what go-redis logs to.
type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

func TestMain(m *testing.M) {
	serveSite()
	goredis.SetLogger(silent{})
	m.Run()
}
