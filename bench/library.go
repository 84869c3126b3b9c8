package main

import (
	"fmt"
	"runtime/debug"
	"strings"
)

// library compares session libraries for net/http, on one Redis: under load, by what they ask of it, and by what becomes of sessions.
func (r *run) library() error {
	redis, err := r.redis()
	if err != nil {
		return err
	}
	fmt.Printf("\n### Session libraries\n\n%s. Each is in a server process of its own, with the same pages, and on one Redis without persistence, over TCP.\n", libraryVersions())
	fmt.Printf("\n#### Under load\n\n%d users who have logged in, with %d bytes in their sessions; %.0f %% of the requests count one up in a session, the others read it. Which session: "+
		"Zipf, (%d+k)^-%.1f. Every connection sends a request when the one before is answered. An idle timeout, where there is one, is of %v. Acknowledged: the page was answered 200. Lost: what the "+
		"counters have less than that in the end.\n\n", librarySessions, size, 100*libraryChanges, libraryZipfFrom, libraryZipf, libraryIdle)
	if err := r.libraryLoad(redis); err != nil {
		return err
	}
	fmt.Print("#### What operations cost\n\nRound trips to Redis, and the commands, of one request at a time in a server that has been at work; those of the library's own connections (HELLO ...) are not among them.\n")
	if err := r.libraryCosts(redis); err != nil {
		return err
	}
	fmt.Print("#### What becomes of sessions\n\nEach cell is asked over HTTP, of a server process and a Redis without any other session.\n")
	return r.libraryProbes(redis.addr)
}

// libraryVersions are those of the libraries in this program.
func libraryVersions() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "versions unknown"
	}
	var all []string
	for _, m := range info.Deps {
		for _, of := range []string{"alexedwards/", "gorilla/sessions", "boj/", "rbcervilla/", "gofiber/fiber", "gofiber/storage", "redis/go-redis", "gomodule/redigo"} {
			if name, ok := strings.CutPrefix(m.Path, "github.com/"); ok && strings.HasPrefix(name, of) {
				all = append(all, name+" "+m.Version)
			}
		}
	}
	return strings.Join(all, ", ")
}
