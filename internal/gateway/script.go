package gateway

import (
	"crypto/sha1"
	"encoding/hex"
	"strings"
	"sync"
)

// releases are the scripts that release a lock: compare GET with ARGV[1], then DEL. They are written without spaces,
// semicolons and capitals, with " as the only quote and redis.call as the only way to call. The value says whether a
// lock that is not held is answered with null instead of 0.
var releases = map[string]bool{
	// phpredis, Laravel, Symfony, redlock, the Redis manual
	`ifredis.call("get",keys[1])==argv[1]thenreturnredis.call("del",keys[1])elsereturn0end`:     false,
	`ifredis.call("get",keys[1])==argv[1]thenreturnredis.call("del",keys[1])endreturn0`:         false,
	`ifredis.call("get",keys[1])==argv[1]thenreturnredis.call("del",keys[1])elsereturnfalseend`: true,
	`ifredis.call("get",keys[1])==argv[1]thenreturnredis.call("del",keys[1])elsereturnnilend`:   true,
	`ifredis.call("get",keys[1])==argv[1]thenreturnredis.call("del",keys[1])end`:                true,
	// redis-py
	`localtoken=redis.call("get",keys[1])ifnottokenortoken~=argv[1]thenreturn0endredis.call("del",keys[1])return1`: false,
}

var canonical = strings.NewReplacer(" ", "", "\t", "", "\r", "", "\n", "", ";", "", "'", `"`, "redis.pcall", "redis.call",
	`"unlink"`, `"del"`)

// maxScript is longer than any release that anybody writes.
const maxScript = 2048

// isRelease recognises a release of a lock by its text; no other script is served, so that no Lua is needed.
func isRelease(text []byte) (orNull, ok bool) {
	if len(text) > maxScript {
		return false, false
	}
	orNull, ok = releases[canonical.Replace(canonical.Replace(strings.ToLower(string(text))))]
	return orNull, ok
}

// scripts are the releases that were seen, by the SHA-1 that EVALSHA names them with. Clients count on NOSCRIPT first.
type scripts struct {
	mu    sync.Mutex // guards known
	known map[string]bool
}

// maxScripts bounds the memory: every spelling of a release has a digest of its own.
const maxScripts = 256

func (s *scripts) add(text []byte, orNull bool) (sha string) {
	sum := sha1.Sum(text)
	sha = hex.EncodeToString(sum[:])
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.known) < maxScripts {
		if s.known == nil {
			s.known = map[string]bool{}
		}
		s.known[sha] = orNull
	}
	return sha
}

func (s *scripts) get(sha []byte) (orNull, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	orNull, ok = s.known[strings.ToLower(string(sha))]
	return orNull, ok
}
