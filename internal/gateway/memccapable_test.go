package gateway

import (
	"net"
	"os/exec"
	"regexp"
	"slices"
	"testing"

	"github.com/sessile/sessile/internal/testserver"
)

var memccapableSays = regexp.MustCompile(`(?s)((?:ascii|binary) [a-z]+(?: noreply)?) {2,}(.*?)\[(pass|FAIL)\]`)

// libmemcached's own test of a server, in both protocols. It finds that nobody may flush a site's sessions, and nothing else.
func TestMemccapable(t *testing.T) {
	path, err := exec.LookPath("memccapable")
	testserver.Need(t, "memccapable", err == nil)
	for option, want := range map[string][]string{"-a": {"ascii flush", "ascii flush noreply"}, "-b": {"binary flush", "binary flushq"}} {
		t.Run(option, func(t *testing.T) {
			t.Parallel()
			_, port, err := net.SplitHostPort(startMemcached(t, Site{}, "client=php-memcache").addr.String())
			if err != nil {
				t.Fatal(err)
			}
			out, _ := exec.Command(path, "-h", "127.0.0.1", "-p", port, "-t", "2", option).CombinedOutput()
			var failed []string
			tests := memccapableSays.FindAllSubmatch(out, -1)
			for _, m := range tests {
				if string(m[3]) == "FAIL" {
					failed = append(failed, string(m[1]))
				}
			}
			if !slices.Equal(failed, want) || len(tests) != 27 {
				t.Errorf("of %d tests %q failed, want of 27 %q:\n%s", len(tests), failed, want, out)
			}
		})
	}
}
