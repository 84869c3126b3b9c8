// Fromscs is a small site, a login and a cart, that has its sessions in alexedwards/scs on a Redis (before.go), and the same site with
// sessions of package sessile (after.go). Who is logged in on the first one is so on the second one, with his cart.
//
//	go run . -with scs -redis 127.0.0.1:6379
//	SHOP_SECRET=... go run . -with sessile -redis 127.0.0.1:6379
//
// README.md says how a real site goes from the one to the other, and what of the way back.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
)

func main() {
	with := flag.String("with", "sessile", "what keeps the sessions: `scs` or sessile")
	listen := flag.String("listen", "127.0.0.1:8080", "`address` to listen on")
	addr := flag.String("redis", "127.0.0.1:6379", "`address` of the Redis")
	flag.Parse()
	if err := run(*with, *listen, *addr, os.Getenv("SHOP_SECRET")); err != nil {
		log.Fatal(err)
	}
}

func run(with, listen, addr, secret string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	client := redis.NewClient(&redis.Options{Addr: addr})
	defer client.Close()
	var site http.Handler
	switch with {
	case "scs":
		site = before(oldSessions(client))
	case "sessile":
		var err error
		var end func() error
		if site, end, err = after(ctx, addr, secret, oldSessions(client)); err != nil {
			return err
		}
		defer end()
	default:
		return fmt.Errorf("-with is scs or sessile, not %q", with)
	}
	srv := &http.Server{Addr: listen, Handler: http.NewCrossOriginProtection().Handler(site)}
	stopped := make(chan error, 1)
	go func() {
		<-ctx.Done()
		// The requests that are under way are let finish: what they write is to be there when the next process looks.
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		stopped <- srv.Shutdown(ctx)
	}()
	log.Print("http://", listen, " with ", with)
	if err := srv.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-stopped
}

// page is what both sites show.
func page(w http.ResponseWriter, user string, cart []string) {
	if user == "" {
		user = "nobody"
	}
	fmt.Fprintf(w, "%s: %s\n", user, strings.Join(cart, " "))
}

// mayLogin checks a password. A real site has users.
func mayLogin(r *http.Request) bool {
	return r.FormValue("user") != "" && r.FormValue("password") == "demo"
}
