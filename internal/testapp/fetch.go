package testapp

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/sessile/sessile/internal/testserver"
)

var fetching sync.Mutex // one at a time in a process

// fetch has install put what the files of a folder of ours name into a folder of its own, which it returns. It is kept for
// the next one who wants the same. What cannot be had is missing, as a server would be.
func fetch(t testing.TB, name, from string, files []string, install func(dir string) *exec.Cmd) string {
	t.Helper()
	fetching.Lock()
	defer fetching.Unlock()
	sum := sha256.New()
	content := map[string][]byte{}
	for _, file := range files {
		b, err := os.ReadFile(filepath.Join(here(), from, file))
		if err != nil {
			t.Fatal(err)
		}
		content[file] = b
		sum.Write(b)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	cache = filepath.Join(cache, "sessile-testapp")
	dir := filepath.Join(cache, fmt.Sprintf("%s-%x", from, sum.Sum(nil)[:8]))
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		t.Fatal(err)
	}
	tmp, err := os.MkdirTemp(cache, "tmp-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(tmp)
	for file, b := range content {
		if err := os.WriteFile(filepath.Join(tmp, file), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := install(tmp)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Logf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, out)
		testserver.Need(t, "packages from "+name, false)
	}
	if err := os.Rename(tmp, dir); err != nil {
		if _, there := os.Stat(dir); there != nil { // another process was not faster
			t.Fatal(err)
		}
	}
	return dir
}
