package redis

import (
	"fmt"
	"strings"
	"testing"
)

const sampleLayout = `07c37df 127.0.0.1:30004@31004,h4 slave e7d1eec 0 1426238317239 4 connected
67ed2db 127.0.0.1:30002@31002 master - 0 1426238316232 2 connected 5461-10922
292f8b3 :0@0 master,fail,noaddr - 1 0 3 disconnected 10923-16383
824fe11 127.0.0.1:30006@31006 slave,fail? 292f8b3 0 1426238317741 6 connected
e7d1eec 127.0.0.1:30001@31001 myself,master - 0 0 1 connected 0-5459 5460 [93-<-292f8b3] [77->-67ed2db]
`

func TestParseLayout(t *testing.T) {
	v, err := parseLayout(sampleLayout)
	if err != nil {
		t.Fatal(err)
	}
	for slot, want := range map[int]string{0: "e7d1eec", 93: "e7d1eec", 5460: "e7d1eec", 5461: "67ed2db", 16383: "292f8b3"} {
		if got := v.owners[slot]; got == nil || got.id != want {
			t.Errorf("slot %d: got %+v, want %s", slot, got, want)
		}
	}
	if v.leaving[77] != "67ed2db" || v.coming[93] != "292f8b3" || len(v.leaving)+len(v.coming) != 2 {
		t.Errorf("slots on their way: got %v and %v", v.leaving, v.coming)
	}
	for id, want := range map[string]clusterNode{
		"07c37df": {id: "07c37df", of: "e7d1eec", epoch: 4},
		"292f8b3": {id: "292f8b3", primary: true, absent: true, epoch: 3, doubts: 1, failures: 1},
		"824fe11": {id: "824fe11", of: "292f8b3", epoch: 6, doubts: 1},
		"e7d1eec": {id: "e7d1eec", primary: true, epoch: 1},
	} {
		if got := v.members[id]; got == nil || *got != want {
			t.Errorf("member %s: got %+v, want %+v", id, got, want)
		}
	}
	v.locate(map[string]endpoint{"07c37df": {"h4", "1", ""}, "67ed2db": {"", "2", "12"}, "e7d1eec": {"", "0", "3"}}, "asked:9", false)
	for id, want := range map[string]string{"07c37df": "h4:1", "67ed2db": "asked:2", "e7d1eec": "", "292f8b3": ""} {
		if got := v.members[id].addr; got != want {
			t.Errorf("address of %s: got %q, want %q", id, got, want)
		}
	}
	for _, bad := range []string{"", "x", strings.ReplaceAll(sampleLayout, "myself,", ""), strings.ReplaceAll(sampleLayout, "16383", "16384"),
		strings.ReplaceAll(sampleLayout, "5460", "x"), strings.ReplaceAll(sampleLayout, "[93", "[16384"), strings.ReplaceAll(sampleLayout, "->-", "-"),
		strings.ReplaceAll(sampleLayout, " 4 connected", " -4 connected")} {
		if _, err := parseLayout(bad); err == nil {
			t.Errorf("parseLayout(%q): no error", bad)
		}
	}
}

func FuzzLayout(f *testing.F) {
	f.Add(sampleLayout)
	f.Fuzz(func(t *testing.T, text string) {
		if v, err := parseLayout(text); err == nil && v.members[v.self] == nil {
			t.Error("a layout without who has it")
		}
	})
}

// layoutOf makes the layout of self: each of nodes is "id epoch slots" or "id epoch of primary", with flags behind the id.
func layoutOf(t *testing.T, self string, nodes ...string) *layout {
	t.Helper()
	var text strings.Builder
	for _, n := range nodes {
		f := strings.Fields(n)
		id, flags, _ := strings.Cut(f[0], ",")
		role, of, slots := "master", "-", strings.Join(f[2:], " ")
		if len(f) == 4 && f[2] == "of" {
			role, of, slots = "slave", f[3], ""
		}
		if id == self {
			role += ",myself"
		}
		fmt.Fprintf(&text, "%s %s:1@2 %s,%s %s 0 0 %s connected %s\n", id, id, role, flags, of, f[1], slots)
	}
	v, err := parseLayout(text.String())
	if err != nil {
		t.Fatal(err)
	}
	for id, m := range v.members {
		m.addr = where(id)
	}
	return v
}

// where is an address at which nobody listens.
func where(id string) string {
	return "127.0.0.1:" + map[string]string{"a": "1", "b": "2", "c": "3", "d": "4", "ra": "5"}[id]
}

// TestLayouts goes by layouts that are late, wrong or not there.
func TestLayouts(t *testing.T) {
	before := []string{"a 1 0-99", "b 2 100-199", "c 3 200-299", "ra 1 of a"}
	for what, tc := range map[string]struct {
		layouts [][]string // each begins with whose it is
		want    string     // owners of the slots 0, 100 and 200
		moved   string     // where the shard is that was a's
	}{
		"as before":  {[][]string{append([]string{"b"}, before...)}, "a b c", "a"},
		"a failover": {[][]string{{"b", "a,fail 1", "b 2 100-199", "c 3 200-299", "ra 4 0-99"}}, "ra b c", "ra"},
		"a failover of which the old one knows nothing": {[][]string{append([]string{"a"}, before...),
			{"b", "a,fail 1", "b 2 100-199", "c 3 200-299", "ra 4 0-99"}}, "ra b c", "ra"},
		"a failover in good order":               {[][]string{{"ra", "ra 4 0-99", "a 4 of ra", "b 2 100-199", "c 3 200-299"}}, "ra b c", "ra"},
		"all have moved, but the late one asked": {[][]string{{"c", "a 1", "b 5 0-199", "c 3 200-299"}, append([]string{"a"}, before...)}, "b b c", "a"},
		"a slot of a new server":                 {[][]string{{"a", "a 1 1-99", "b 2 100-199", "c 3 200-299", "d 9 0"}}, "d b c", "a"},
		"nobody else knows the failed one":       {[][]string{{"c", "b 2 100-199", "c 3 200-299"}}, "- b c", ""},
		"it says itself that it has given it up": {[][]string{{"a", "a 7 1-99", "b 2 100-199", "c 3 200-299"}}, "- b c", "a"},
		"one of two says that it has failed":     {[][]string{append([]string{"c"}, before...), {"b", "a,fail 1 0-99", "b 2 100-199", "c 3 200-299"}}, "a b c", "a"},
		"both of two say that it has failed":     {[][]string{{"c", "a,fail 1 0-99", "b 2 100-199", "c 3 200-299"}, {"b", "a,fail 1 0-99", "b 2 100-199", "c 3 200-299"}}, "a b c", ""},
	} {
		t.Run(what, func(t *testing.T) {
			opt := Options{Cluster: []string{where("a")}}
			if err := opt.complete(); err != nil {
				t.Fatal(err)
			}
			s, _ := newStore(opt)
			defer s.Close()
			c := s.cluster
			adopt := func(layouts [][]string) {
				c.mu.Lock()
				defer c.mu.Unlock()
				var vs []*layout
				for _, v := range layouts {
					vs = append(vs, layoutOf(t, v[0], v[1:]...))
				}
				leaving := c.adopt(vs)
				c.mu.Unlock()
				c.leave(leaving)
				c.mu.Lock()
			}
			adopt([][]string{append([]string{"b"}, before...)})
			first := c.owner[0].Load()
			adopt(tc.layouts)
			var got []string
			for _, slot := range []int{0, 100, 200} {
				id := "-"
				if h := c.owner[slot].Load(); h != nil {
					id = h.id
				}
				got = append(got, id)
			}
			if owners := strings.Join(got, " "); owners != tc.want {
				t.Errorf("owners: got %s, want %s", owners, tc.want)
			}
			if at := first.place.Load().addr; tc.moved != "" && at != where(tc.moved) {
				t.Errorf("the shard: got %q, want %q", at, tc.moved)
			}
			failed := what == "both of two say that it has failed"
			if failed != first.doubted || failed != (first.place.Load().addr == "") {
				t.Errorf("suspected: %v, at %q", first.doubted, first.place.Load().addr)
			}
		})
	}
}

// TestAnHeirWithoutASlot has a primary die that was given a slot just before: nobody has heard of that but us.
func TestAnHeirWithoutASlot(t *testing.T) {
	opt, err := Options{Cluster: []string{"127.0.0.1:1"}}.Completed()
	if err != nil {
		t.Fatal(err)
	}
	s, _ := newStore(opt)
	defer s.Close()
	c := s.cluster
	adopt := func(text string) {
		t.Helper()
		v, err := parseLayout(text)
		if err != nil {
			t.Fatal(err)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.adopt([]*layout{v})
	}
	adopt(`a :0@0 myself,master - 0 0 1 connected 0-100
m :0@0 master - 0 0 2 connected 101-16383
r :0@0 slave m 0 0 2 connected
`)
	source, h := c.owner[0].Load(), c.owner[101].Load()
	adopt(`a :0@0 master - 0 0 1 connected 1-100
m :0@0 myself,master - 0 0 3 connected 0 101-16383
r :0@0 slave m 0 0 2 connected
`)
	if c.owner[0].Load() != h {
		t.Fatal("the slot is not there")
	}
	adopt(`a :0@0 master - 0 0 1 connected 0-100
m :0@0 master,fail - 0 0 2 connected
r :0@0 myself,master - 0 0 4 connected 101-16383
`)
	if c.owner[101].Load() != h || h.id != "r" || h.slots != 16383-100 {
		t.Errorf("the replica is nobody's heir: %s has %d slots", h.id, h.slots)
	}
	adopt(`a :0@0 myself,master - 0 0 1 connected 0-100
m :0@0 master,fail - 0 0 2 connected
r :0@0 master - 0 0 4 connected 101-16383
`)
	if got := c.owner[0].Load(); got != source {
		t.Errorf("the slot is held by %s", got.id)
	}
	if len(c.shards) != 2 {
		t.Errorf("got %d shards", len(c.shards))
	}
}

func TestPointed(t *testing.T) {
	for text, want := range map[string]string{
		"127.0.0.1:7002": "127.0.0.1:7002", "h2:7002": "h2:7002", "::1:7002": "[::1]:7002", "[::1]:7002": "[::1]:7002",
		":7002": "asked:7002", "?:7002": "asked:7002", "x": "x",
	} {
		if got := pointed(text, "asked:7001"); got != want {
			t.Errorf("pointed(%q): got %q, want %q", text, got, want)
		}
	}
}
