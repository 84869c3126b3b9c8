// Command sessile moves web sessions to Redis while the site runs: the gateway (serve), and what drives the move
// (migrate). Results go to stdout, progress and logs to stderr; the exit code is 0 done, 1 failed, 2 usage, 3 mismatches
// found or gates closed, 4 could not look.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends us as signals do; serve has its own ear for it
	code := newApp(os.Stdin, os.Stdout, os.Stderr).run(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}
