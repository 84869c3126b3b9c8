package store

import "context"

type replicatedKey struct{}

// Replicated marks a write that shall not be answered before the replicas have it, too, where the store has some and can
// wait for them: a login, a logout. Elsewhere it is a write like any other.
func Replicated(ctx context.Context) context.Context {
	return context.WithValue(ctx, replicatedKey{}, true)
}

// WantsReplicas reports whether ctx comes from Replicated.
func WantsReplicas(ctx context.Context) bool { return ctx.Value(replicatedKey{}) != nil }
