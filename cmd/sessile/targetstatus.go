package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sessile/sessile/internal/admin"
)

func (m *moving) targetStatus() *cobra.Command {
	return m.leaf(&cobra.Command{Use: "status", Short: "Show what holds operations up, and what became of them at failovers"}, func(ctx context.Context, _ []string) error {
		client, site, err := m.connectAny(ctx)
		if err != nil {
			return err
		}
		defer client.Close()
		raw, err := client.Get(ctx, "/v1/sites/"+site.Name+"/target/status")
		var st admin.TargetStatus
		if err == nil {
			err = json.Unmarshal(raw, &st)
		}
		if err != nil {
			return err
		}
		m.showTarget(st)
		return nil
	})
}

func (m *moving) showTarget(st admin.TargetStatus) {
	if m.json {
		m.print(st)
		return
	}
	var b bytes.Buffer
	writeTarget(&b, st)
	fmt.Fprint(m.out, clean(b.String()))
}

// writeTarget writes lines of 80 columns at the most.
func writeTarget(w io.Writer, st admin.TargetStatus) {
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%-11s %s\n", name, fmt.Sprintf(format, args...))
	}
	ms := func(n int64) time.Duration { return time.Duration(n) * time.Millisecond }
	if len(st.Holding) == 0 {
		line("holding", "no")
	} else {
		line("holding", "%s", strings.Join(st.Holding, ", "))
		line("", "for %v", ms(st.HoldingMS))
	}
	if st.Empty() {
		line("", "a server has forgotten everything: nobody is served until a replica")
		line("", "that has the data is the primary, or `sessile target refill` or")
		line("", "`sessile target accept` decides (docs/redis-ha.md)")
	}
	line("held", "%v in all, %v at most", ms(st.HeldMS), ms(st.HeldMaxMS))
	line("switches", "%d new primaries put in order, %d that came back empty", st.Switches, st.Forgotten)
	line("unknown", "%d writes without an answer, %d of them found done", st.Unknown, st.Resolved)
	line("put back", "%d that a new primary lacked", st.PutBack)
	left := uint64(0)
	for _, n := range st.Left {
		left += n
	}
	line("left", "%d not put back, %d of them lost", left, st.Lost)
	for _, why := range sortedKeys(st.Left) {
		if n := st.Left[why]; n > 0 {
			line("", "%d %s", n, why)
		}
	}
	line("exposed", "%d writes after a primary was last confirmed", st.Exposed)
	line("remembered", "%d in %d bytes, %d dropped for want of room", st.Remembered, st.RememberedBytes, st.Overflow)
	line("shortfalls", "%d critical writes that not all replicas confirmed in time", st.Shortfalls)
	if st.Evicted > 0 {
		line("evicted", "%d keys, for want of memory: their users are logged out", st.Evicted)
	}
	line("gateways", "%d", st.Gateways)
}
