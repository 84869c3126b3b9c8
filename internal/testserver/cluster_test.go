package testserver

import (
	"fmt"
	"strings"
	"testing"
)

func TestClusterFailsOver(t *testing.T) {
	t.Parallel()
	c := Cluster(t, ClusterOptions{})
	if got := len(c.Primaries()); got != 3 {
		t.Errorf("Primaries: got %d, want 3", got)
	}
	if want := "redis-cluster://" + c.Nodes[0].Addr + "," + c.Nodes[1].Addr + "," + c.Nodes[2].Addr; c.URL() != want {
		t.Errorf("URL: got %q, want %q", c.URL(), want)
	}
	const key = "k"
	slot, first := c.Slot(key), c.NodeOf(key)
	replica := c.ReplicaOf(first)
	setEverywhere(t, first, key, "v", 1)
	cases := []struct {
		name      string
		end, mend func(*RedisServer)
	}{
		{"killed", (*RedisServer).Kill, (*RedisServer).Restart},
		{"paused", (*RedisServer).Pause, (*RedisServer).Resume},
	}
	for _, how := range cases {
		t.Run(how.name, func(t *testing.T) {
			how.end(first)
			if got := c.WaitPrimary(slot, first); got != replica {
				t.Errorf("WaitPrimary: got %s, want the replica", got.Addr)
			}
			if got := replica.Do("GET", key); got != "v" {
				t.Errorf("GET from the new primary: got %v", got)
			}
			c.WaitOK() // without the first one
			how.mend(first)
			c.WaitOK()
			if got := c.ReplicaOf(replica); got != first {
				t.Error("the former primary is not the replica of the new one")
			}
			first, replica = replica, first
		})
	}
}

func TestClusterMovesSlots(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name   string
		scheme string
		opts   []RedisOption
	}{
		{"plain", "redis-cluster://127.", nil},
		{"with a password", "redis-cluster://:secret@", []RedisOption{WithPassword("", "secret")}},
		{"with a user and TLS", "rediss-cluster://bob:secret@", []RedisOption{WithPassword("bob", "secret"), WithTLS()}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			set := Cluster(t, ClusterOptions{Replicas: -1, Node: c.opts, Slots: []string{"0-99 101 5000-16383", "100 102-4998"}})
			if !strings.HasPrefix(set.URL(), c.scheme) {
				t.Errorf("URL: got %q, want it to begin with %q", set.URL(), c.scheme)
			}
			from, to := set.Nodes[0], set.Nodes[1]
			for slot, want := range map[int]*RedisServer{0: from, 100: to, 101: from, 102: to, 4998: to, 4999: nil, 5000: from, 16383: from} {
				if got := set.Node(slot); got != want {
					t.Errorf("Node(%d): got %v, want %v", slot, got, want)
				}
			}
			slot := set.Slot("{foo}")
			if set.Node(slot) != from {
				t.Fatalf("slot %d is not with the first node", slot)
			}
			for i := range 2500 {
				from.Do("SET", fmt.Sprint("{foo}", i), fmt.Sprint(i))
			}
			answer := func(n *RedisServer, key string) string {
				v, err := n.Try("GET", key)
				if err != nil {
					word, _, _ := strings.Cut(err.Error(), " ")
					return word
				}
				return fmt.Sprint(v)
			}
			step := func(what, wantFrom, wantTo string) {
				t.Helper()
				for key, want := range map[*RedisServer]string{from: wantFrom, to: wantTo} {
					if got := answer(key, "{foo}7"); got != want {
						t.Errorf("GET %s, from %s: got %q, want %q", what, key.Addr, got, want)
					}
				}
			}
			step("before", "7", "MOVED")
			set.BeginMove(from, to, slot)
			step("in the middle", "7", "MOVED")
			if got := answer(from, "{foo}absent"); got != "ASK" {
				t.Errorf("GET of an absent key in the middle: got %q, want ASK", got)
			}
			set.MoveKeys(from, to, slot)
			step("with the keys away", "ASK", "MOVED")
			set.EndMove(to, slot)
			step("afterwards", "MOVED", "7")
			set.WaitOK()
			if set.Node(slot) != to {
				t.Error("Node: the slot is still with the first node")
			}
			if got := to.Do("CLUSTER", "COUNTKEYSINSLOT", fmt.Sprint(slot)); got != int64(2500) {
				t.Errorf("keys in the slot: got %v, want 2500", got)
			}
			set.MoveSlots(to, from, slot, 100)
			set.WaitOK()
			step("moved back", "7", "MOVED")
			if set.Node(100) != from {
				t.Error("Node: slot 100 was not moved")
			}
		})
	}
}
