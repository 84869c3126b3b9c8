package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sessile/sessile/internal/testserver"
)

func TestDoctor(t *testing.T) {
	server := testserver.Redis(t, testserver.Persistent(), testserver.WithPassword("", secret), testserver.WithConf("maxmemory 1gb"))
	env := []string{"SESSILE_TARGET=" + server.URL()}

	r := run(t, env, "doctor").want(t, 0, "primary "+server.Addr, "")
	if !strings.Contains(r.stdout, "danger 0, ") || strings.Contains(r.stdout+r.stderr, secret) || strings.Contains(r.stdout, "\x1b") {
		t.Errorf("got %s%s", r.stdout, r.stderr)
	}
	run(t, env, "doctor", "--strict").want(t, 3, "warning acl", "findings to be mended")
	run(t, env, "doctor", "--strict", "--accept", "acl,version").want(t, 0, "warning acl", "")
	run(t, env, "doctor", "--accept", "evicton").want(t, 2, "", "did you mean eviction?")

	server.Do("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
	run(t, env, "doctor").want(t, 3, "  DANGER  eviction: maxmemory-policy allkeys-lru", "findings to be mended: 1")
	run(t, env, "doctor", "--accept", "eviction").want(t, 0, "DANGER", "")
	r = run(t, env, "doctor", "--json").want(t, 3, "", "")
	var got struct {
		Danger, Warning, Unseen, OK int
		Stores                      []struct {
			Site, Store, URL, Problem string
			Subjects                  []struct {
				Name, Role string
				Findings   []struct {
					Level, Check, What, Why string
					Remedy                  []string
				}
			}
		}
	}
	if err := json.Unmarshal([]byte(r.stdout), &got); err != nil {
		t.Fatalf("%v: %s", err, r.stdout)
	}
	if len(got.Stores) != 1 || len(got.Stores[0].Subjects) != 1 || got.Danger != 1 || got.OK < 5 {
		t.Fatalf("got %+v", got)
	}
	store := got.Stores[0]
	f := store.Subjects[0].Findings[0]
	if store.Site != "default" || store.Store != "target" || f.Level != "danger" || f.Check != "eviction" || f.Why == "" || f.Remedy[0] != "CONFIG SET maxmemory-policy noeviction" {
		t.Errorf("got %+v", store)
	}

	// Several sites: each store is looked at, whatever becomes of the others.
	file := filepath.Join(t.TempDir(), "sessile.yaml")
	text := fmt.Sprintf("sites:\n  - name: a\n    target: %q\n  - name: b\n    target: %q\n  - name: c\n    target: memory://\n", "redis://127.0.0.1:1", server.URL()+"/1")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	r = run(t, nil, "doctor", "--config", file).want(t, 4, "site b, target redis://"+server.Addr+"/1", "site a: target redis://127.0.0.1:1")
	if !strings.Contains(r.stdout, "DANGER  reach: cannot be asked") || !strings.Contains(r.stdout, "DANGER  eviction") {
		t.Errorf("got %s", r.stdout)
	}
	r = run(t, nil, "doctor", "--config", file, "--json").want(t, 4, `"problem": "`, "")
	if err := json.Unmarshal([]byte(r.stdout), &got); err != nil || len(got.Stores) != 2 {
		t.Errorf("got %v, %s", err, r.stdout)
	}

	run(t, nil, "doctor").want(t, 2, "", "--target")
	run(t, nil, "doctor", "--target", "memory://").want(t, 2, "", "no store of this configuration is in Redis")
	run(t, nil, "doctor", "--target", "redis-sentinel://"+server.Addr+"/m").want(t, 4, "", "no Sentinel answers")
}
