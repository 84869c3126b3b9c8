package testserver

import (
	"bufio"
	"cmp"
	"fmt"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"
)

// setEverywhere writes a key and waits until so many replicas have it, on one connection: see Do.
func setEverywhere(t *testing.T, r *RedisServer, key, value string, replicas int) {
	t.Helper()
	conn, err := net.Dial("unix", r.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(respTime))
	in := bufio.NewReader(conn)
	if r.password != "" {
		respDo(conn, in, []string{"AUTH", cmp.Or(r.user, "default"), r.password}) // SET says if it went wrong
	}
	if _, err := respDo(conn, in, []string{"SET", key, value}); err != nil {
		t.Fatalf("SET: %v", err)
	}
	if got, err := respDo(conn, in, []string{"WAIT", fmt.Sprint(replicas), "5000"}); got != int64(replicas) {
		t.Fatalf("WAIT: got %v replicas, %v, want %d", got, err, replicas)
	}
}

func TestSentinelFailsOver(t *testing.T) {
	t.Parallel()
	s := Sentinel(t, SentinelOptions{FailoverTimeout: time.Second})
	first := s.Nodes[0]
	if got := s.Primary(); got != first {
		t.Fatalf("Primary: got %v, want the first node", got)
	}
	if got := len(s.ReplicasOf(first)); got != 2 {
		t.Errorf("ReplicasOf the first node: got %d, want 2", got)
	}
	if want := "redis-sentinel://" + s.Sentinels[0].Addr + "," + s.Sentinels[1].Addr + "," + s.Sentinels[2].Addr + "/mymaster/0"; s.URL() != want {
		t.Errorf("URL: got %q, want %q", s.URL(), want)
	}
	cases := []struct {
		name string
		end  func(primary *RedisServer)
		mend func(former *RedisServer)
	}{
		{"planned", func(*RedisServer) { s.Failover() }, func(*RedisServer) {}},
		{"primary killed", (*RedisServer).Kill, (*RedisServer).Restart},
		{"primary and a Sentinel paused", func(p *RedisServer) { s.Sentinels[0].Pause(); p.Pause() },
			func(p *RedisServer) { s.Sentinels[0].Resume(); p.Resume() }},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			former := s.Primary()
			setEverywhere(t, former, "k", c.name, 2)
			c.end(former)
			now := s.WaitPrimary(former)
			if got := now.Do("GET", "k"); got != c.name {
				t.Errorf("GET from the new primary: got %v, want %v", got, c.name)
			}
			c.mend(former)
			s.WaitOK()
			if s.Primary() != now || len(s.ReplicasOf(now)) != 2 {
				t.Errorf("afterwards: %d replicas, the same primary: %v", len(s.ReplicasOf(now)), s.Primary() == now)
			}
		})
	}
}

func TestSentinelWith(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name   string
		o      SentinelOptions
		begins string // the URL
		params url.Values
	}{
		{"passwords", SentinelOptions{
			Node:     []RedisOption{WithPassword("", "secret")},
			Sentinel: []RedisOption{WithPassword("", "other")},
		}, "redis-sentinel://:secret@127.0.0.1:", url.Values{"sentinel_password": {"other"}}},
		{"users, and another name", SentinelOptions{
			Name: "sessions", Node: []RedisOption{WithPassword("bob", "secret"), Persistent()},
			Sentinel: []RedisOption{WithPassword("eve", "other")},
		}, "redis-sentinel://bob:secret@127.0.0.1:", url.Values{"sentinel_username": {"eve"}, "sentinel_password": {"other"}}},
		{"TLS, one replica, one Sentinel", SentinelOptions{Replicas: 1, Sentinels: 1, Node: []RedisOption{WithTLS()}},
			"rediss-sentinel://127.0.0.1:", nil},
		{"hostnames", SentinelOptions{Hostnames: true}, "redis-sentinel://localhost:", nil},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := Sentinel(t, c.o)
			if !strings.HasPrefix(s.URL(), c.begins) {
				t.Errorf("URL: got %q, want it to begin with %q", s.URL(), c.begins)
			}
			_, query, _ := strings.Cut(s.URL(), "?")
			got, err := url.ParseQuery(query)
			if got.Del("ca_file"); err != nil || got.Encode() != c.params.Encode() {
				t.Errorf("URL: got parameters %v, want %v", got, c.params)
			}
			first := s.Nodes[0]
			setEverywhere(t, first, "k", "v", len(s.Nodes)-1)
			first.Kill() // the Sentinels have to vote, which a planned failover does without
			if got := s.WaitPrimary(first).Do("EXISTS", "k"); got != int64(1) {
				t.Errorf("EXISTS after a failover: got %v", got)
			}
		})
	}
}
