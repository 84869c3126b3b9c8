package store

import (
	"context"
	"time"
)

// What a caller wants of an operation besides: it goes with the context, through every wrapper.

type (
	replicatedKey struct{}
	notAfterKey   struct{}
)

// Replicated marks a write that shall not be answered before the replicas have it, too, where the store has some and can
// wait for them: a login, a logout. Elsewhere it is a write like any other.
func Replicated(ctx context.Context) context.Context {
	return context.WithValue(ctx, replicatedKey{}, true)
}

// WantsReplicas reports whether ctx comes from Replicated.
func WantsReplicas(ctx context.Context) bool { return ctx.Value(replicatedKey{}) != nil }

// NotAfter is context.WithDeadline for an operation that may not happen after t either: not even where what was sent is
// executed when nobody waits for it any more. A store that bounds in its server how long a statement runs sends it early enough.
func NotAfter(ctx context.Context, t time.Time) (context.Context, context.CancelFunc) {
	return context.WithDeadline(context.WithValue(ctx, notAfterKey{}, t), t)
}

// Latest returns the time that NotAfter has set.
func Latest(ctx context.Context) (t time.Time, ok bool) {
	t, ok = ctx.Value(notAfterKey{}).(time.Time)
	return t, ok
}
