package main

import (
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testserver"
)

// The judge is judged: what it has to notice, one at a time.
func TestFaultJudge(t *testing.T) {
	begin := time.Now()
	at := func(seconds float64) time.Time { return begin.Add(time.Duration(seconds * float64(time.Second))) }
	// Two doors, and a fault from 1 to 5; another primary is there from 3 on.
	written := func(key string, door int, done float64) session {
		return session{key: key, door: door, sent: at(done), done: at(done)}
	}
	refused, gone, maybeGone := written("refused", 0, 2), written("gone", 0, 2), written("maybe gone", 0, 2)
	refused.err = errors.New("unknown")
	gone.logout, maybeGone.logout = acknowledged, asked
	for _, c := range []struct {
		what  string
		wrote session
		is    string // its value in the end, "" for none
		want  faultResult
	}{
		{"all is well", written("k", 0, 2), valueOf("k"), faultResult{Acknowledged: 1, Pause: 4}},
		{"lost", written("k", 0, 2), "", faultResult{Acknowledged: 1, Lost: 1, Pause: 4}},
		{"another one's value", written("k", 0, 2), valueOf("j"), faultResult{Acknowledged: 1, Lost: 1, Pause: 4}},
		{"lost, and acknowledged by who was no primary any more", written("k", 0, 4), "", faultResult{Acknowledged: 1, Lost: 1, Zombie: 1, Pause: 3}},
		{"refused", refused, "", faultResult{}},
		{"an error, and done", refused, valueOf("refused"), faultResult{Done: 1}},
		{"logged out", gone, "", faultResult{Acknowledged: 1, Pause: 4}},
		{"a logout undone", gone, valueOf("gone"), faultResult{Acknowledged: 1, Undone: 1, Pause: 4}},
		{"a logout that failed, done", maybeGone, "", faultResult{Acknowledged: 1, Pause: 4}},
		{"a logout that failed, not done", maybeGone, valueOf("maybe gone"), faultResult{Acknowledged: 1, Pause: 4}},
		{"before the fault", written("k", 0, 0.5), valueOf("k"), faultResult{Acknowledged: 1, Pause: 5}},
		{"by who is cut off", written("k", 1, 2.5), valueOf("k"), faultResult{Acknowledged: 1, ExposedWrites: 1, Exposed: 1.5}},
		{"by who was cut off", written("k", 1, 5.5), valueOf("k"), faultResult{Acknowledged: 1}},
		{"where the fault is not", written("elsewhere", 0, 2), valueOf("elsewhere"), faultResult{Acknowledged: 1, Pause: 5}},
		{"done twice", written("twice", 0, 2), valueOf("twice"), faultResult{Acknowledged: 1, Repeated: 1, Pause: 4}},
	} {
		r := &faultRun{at: at(1), elected: at(3), healed: at(5), cut: 1, hit: func(key string) bool { return key != "elsewhere" },
			seen: []*executed{{sets: map[string]int{"k": 1, "twice": 1}}, {sets: map[string]int{"twice": 1}}}}
		there := map[string]string{}
		if c.is != "" {
			there[c.wrote.key] = c.is
		}
		got, lost, undone := r.judge([]session{c.wrote}, there, at(6))
		c.want.Elected = 2
		if !reflect.DeepEqual(got, c.want) || len(lost) != got.Lost || len(undone) != got.Undone {
			t.Errorf("%s: got %+v, want %+v", c.what, got, c.want)
		}
	}
}

func TestSlotOf(t *testing.T) {
	r := testserver.Redis(t, testserver.WithConf("cluster-enabled yes"))
	for _, key := range []string{"", "a", "123456789", "fault:sessile:15-1-1795267811:3:17"} {
		if want := r.Do("CLUSTER", "KEYSLOT", key); int64(slotOf(key)) != want {
			t.Errorf("slotOf(%q): got %d, want %d", key, slotOf(key), want)
		}
	}
}

func TestGoals(t *testing.T) {
	for _, c := range []struct {
		g    goal
		f    figures
		want bool
	}{
		{lossless, figures{}, true},
		{lossless, figures{lost: 1}, false},
		{lossless, figures{undone: 1}, false},
		{within(time.Second), figures{pauseMax: 0.9}, true},
		{within(time.Second), figures{pauseMax: 1.1}, false},
		{within(time.Second), figures{lost: 1}, false},
		{leased, figures{contestant: "sessile", exposedWorst: 6}, true},
		{leased, figures{contestant: "sessile strict", exposedWorst: 0.4}, true},
		{leased, figures{contestant: "sessile strict", exposedWorst: 0.6}, false},
		{unlessStrict, figures{contestant: "sessile strict", pauseMax: 5}, true},
		{unlessStrict, figures{contestant: "sessile", pauseMax: 5}, false},
		{crowdServed, figures{crowd: 1}, true},
		{crowdServed, figures{crowd: 4}, false},
		{crowdServed, figures{crowd: 1, crowdFailed: 1}, false},
		{backAtOnce, figures{pauseMax: 4, backMax: 0.2}, true},
		{backAtOnce, figures{pauseMax: 4, backMax: 1.2}, false},
	} {
		if got := c.g.met(c.f); got != c.want {
			t.Errorf("%s, %+v: got %v", c.g.text, c.f, got)
		}
	}
}
