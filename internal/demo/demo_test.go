package demo

import (
	"bytes"
	"encoding/json"
	"testing"
)

func TestDemo(t *testing.T) {
	for _, redis := range []string{"auto", "memory"} {
		t.Run(redis, func(t *testing.T) {
			var out, progress bytes.Buffer
			r, err := Run(t.Context(), Options{JSON: true, Out: &out, Err: &progress, Redis: redis, Short: true})
			t.Log(progress.String())
			if err != nil {
				t.Fatalf("%v\n%s", err, out.String())
			}
			var again Report
			if err := json.Unmarshal(out.Bytes(), &again); err != nil {
				t.Fatal(err)
			}
			if again.Users != 200 || again.UsersKept != 200 || again.Requests < 500 || again.Phase != "complete" || !again.RolledBack || again.Failures > 0 {
				t.Errorf("got %+v", r)
			}
			t.Log(out.String())
		})
	}
}
