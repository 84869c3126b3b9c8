package recorder

import (
	"testing"
	"time"
)

// A judge that never condemns is no judge.
func TestRecorderCondemns(t *testing.T) {
	for name, tc := range map[string]struct {
		run  func(r *Recorder)
		want Report
	}{
		"nothing": {func(r *Recorder) {
			r.LoggedIn("id")
			r.Wrote("id", "a")
			r.Saw("id", time.Now(), true, []string{"a"}, "test")
			r.Leaving("id")
			r.Saw("id", time.Now(), false, nil, "test")
			r.Left("id")
			r.Saw("id", time.Now(), false, nil, "test")
		}, Report{}},
		"a logout": {func(r *Recorder) {
			r.LoggedIn("id")
			r.Saw("id", time.Now(), false, nil, "test")
			r.Saw("id", time.Now(), false, nil, "test")
		}, Report{LoggedOut: 1}},
		"a logout undone": {func(r *Recorder) {
			r.LoggedIn("id")
			r.Leaving("id")
			r.Left("id")
			r.Saw("id", time.Now(), true, nil, "test")
		}, Report{LogoutsUndone: 1}},
		"a lost update": {func(r *Recorder) {
			r.LoggedIn("id")
			r.Wrote("id", "a")
			r.Wrote("id", "b")
			r.Saw("id", time.Now(), true, []string{"b"}, "test")
			r.Saw("id", time.Now(), true, []string{"b"}, "test")
		}, Report{LostUpdates: 1}},
		"a lost update at the end": {func(r *Recorder) {
			r.LoggedIn("id")
			r.Wrote("id", "a")
			_ = r.Final("store", func(string) (bool, []string, error) { return true, nil, nil })
		}, Report{LostUpdates: 1}},
		"an answer that began before the write": {func(r *Recorder) {
			r.LoggedIn("id")
			begun := time.Now()
			r.Wrote("id", "a")
			r.Saw("id", begun, true, nil, "test")
		}, Report{}},
	} {
		r := New()
		tc.run(r)
		got := r.Report()
		if got.LoggedOut != tc.want.LoggedOut || got.LogoutsUndone != tc.want.LogoutsUndone || got.LostUpdates != tc.want.LostUpdates {
			t.Errorf("%s: got %+v, want %+v", name, got, tc.want)
		}
	}
}
