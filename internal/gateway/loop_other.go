//go:build !linux

package gateway

import "net"

// There are no loops here: every connection has a goroutine.

type loop struct{}

func newLoop(*Server) *loop { return nil }

func (*loop) post(func()) bool { return false }

func (*loop) listen(net.Listener) (error, bool) { return nil, false }
