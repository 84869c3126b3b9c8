package doctor

import (
	"fmt"
	"strconv"
	"strings"
)

// A flaw is a known vulnerability. A release line that is not named in redis or valkey was never mended, unless it is
// younger than all that are. Debian 12 keeps Redis at 7.0.15 and mends that: debian is the number behind deb12u.
type flaw struct {
	cve, what     string
	since         string // the first line that has it; "": all
	redis, valkey string // the first releases without it, oldest first
	debian        int
}

// Taken from the release notes of Redis and Valkey and from the changelog of Debian's package; November 2026. What is here
// is what lets somebody run code of his own, or fill the memory.
var flaws = []flaw{
	{"CVE-2022-0543", "Lua in the packages of Debian and Ubuntu: runs programs", "", "7.0.0", "7.2.0", 0},
	{"CVE-2022-24834", "Lua: runs code", "", "7.0.12 7.2.0", "7.2.0", 0},
	{"CVE-2024-31449", "Lua: runs code", "", "7.2.6 7.4.1", "7.2.7 8.0.1", 2},
	{"CVE-2024-46981", "Lua: runs code", "", "7.2.7 7.4.2", "7.2.8 8.0.2", 3},
	{"CVE-2025-21605", "no login: fills the memory", "", "7.2.8 7.4.3", "7.2.9 8.0.3 8.1.1", 4},
	{"CVE-2025-32023", "HyperLogLog: runs code", "", "7.2.10 7.4.5 8.0.3", "7.2.10 8.0.4 8.1.3", 5},
	{"CVE-2025-49844", "Lua: runs code", "", "7.2.11 7.4.6 8.0.4 8.2.2", "7.2.11 8.0.6 8.1.4", 6},
	{"CVE-2026-25243", "RESTORE: runs code", "", "7.2.14 7.4.9 8.2.6 8.4.3 8.6.3", "7.2.13 8.0.8 8.1.7 9.0.4", 8},
	{"CVE-2026-23631", "functions: runs code", "7.0", "7.2.14 7.4.9 8.2.6 8.4.3 8.6.3", "7.2.13 8.0.8 8.1.7 9.0.4", 8},
	{"CVE-2026-23479", "blocking commands: runs code", "7.2", "7.2.14 7.4.9 8.2.6 8.4.3 8.6.3", "7.2.13 8.0.8 8.1.7 9.0.4", 0},
	{"CVE-2026-81934", "TLS, no login: runs code", "", "7.2.16 7.4.11 8.2.9 8.4.6 8.6.6 8.8.2 8.10.1", "", 10},
}

type release struct{ line, patch int } // 7.2.11: 7002, 11

func readRelease(text string) (r release, ok bool) {
	var n [3]int
	parts := strings.Split(text, ".")
	for i := range min(len(parts), len(n)) {
		digits := parts[i][:len(parts[i])-len(strings.TrimLeft(parts[i], "0123456789"))] // 8.0.0-rc1
		v, err := strconv.Atoi(digits)
		if err != nil {
			return r, false
		}
		n[i] = v
	}
	return release{1000*n[0] + n[1], n[2]}, len(parts) >= 2
}

// has reports whether the release has the flaw, going by mended.
func (f flaw) has(r release, mended string) bool {
	if since, ok := readRelease(f.since); ok && r.line < since.line {
		return false
	}
	newest := 0
	for _, text := range strings.Fields(mended) {
		m, _ := readRelease(text)
		if m.line == r.line {
			return r.patch < m.patch
		}
		newest = max(newest, m.line)
	}
	return r.line < newest
}

// oldest is the first release line of Redis that has all that Sessile needs.
const oldest = 7000

func (s *Subject) version(info Fields) {
	product, text := "Redis", info["redis_version"]
	if v := info["valkey_version"]; v != "" {
		product, text = "Valkey", v
	}
	r, ok := readRelease(text)
	if !ok {
		s.add(Unseen, "version", "INFO names no version", "")
		return
	}
	name := product + " " + text
	if r.line < oldest {
		s.add(Danger, "version", name+"; 7.0 is needed",
			"Scripts of Sessile say of themselves whether they may run on a full server, which older ones do not understand: nothing would be saved.",
			"upgrade to 7.0 or later")
	}
	var found []string
	debian := 0
	for _, f := range flaws {
		mended := f.redis
		if product == "Valkey" {
			mended = f.valkey
		}
		if f.has(r, mended) {
			found = append(found, fmt.Sprintf("%s (%s)", f.cve, f.what))
			debian = max(debian, f.debian)
		}
	}
	if len(found) == 0 {
		if r.line >= oldest {
			s.ok("version", name)
		}
		return
	}
	remedy := []string{"upgrade, or see whether your distribution has mended its package"}
	if text == "7.0.15" && product == "Redis" {
		remedy = []string{fmt.Sprintf("Debian 12 has mended all of them in 5:7.0.15-1~deb12u%d:", debian),
			"dpkg-query -W redis-server", "apt-get update && apt-get install --only-upgrade redis-server"}
	}
	s.add(Warning, "version", name+": "+strings.Join(found, ", ")+"; unless your distribution has mended its package",
		"Who gets in, or an application that is made to run a script, owns the server and every session on it.", remedy...)
}
