package main

import (
	"context"
	"maps"
	"slices"

	"github.com/sessile/sessile/internal/admin"
	"github.com/sessile/sessile/internal/gateway"
	"github.com/sessile/sessile/store"
	redisstore "github.com/sessile/sessile/store/redis"
)

// failover is a target whose servers change their roles.
type failover interface {
	FailsOver() bool
	Failover() redisstore.FailoverStats
	Refill(context.Context) error
	AcceptEmpty(context.Context) error
}

// shownTarget is what the admin API shows of target, nil where that does not fail over.
func shownTarget(target store.Target) admin.Target {
	if t, ok := target.(failover); ok && t.FailsOver() {
		return failingOver{t}
	}
	return nil
}

type failingOver struct{ failover }

func (t failingOver) Status() admin.TargetStatus {
	st := t.Failover()
	return admin.TargetStatus{
		Holding: append([]string{}, st.Holding...), HoldingMS: st.HeldNow.Milliseconds(), Switches: st.Switches,
		HeldMS: st.Held.Milliseconds(), HeldMaxMS: st.HeldMax.Milliseconds(), Unknown: st.Unknown, Resolved: st.Resolved,
		PutBack: st.PutBack, Left: st.Left, Lost: st.Lost, Exposed: st.Exposed,
		Remembered: st.Entries, RememberedBytes: st.Bytes, Overflow: st.Overflow,
		Shortfalls: st.Shortfalls, Gateways: st.Gateways, Forgotten: st.Forgotten, Evicted: st.Evicted,
	}
}

// failoverGauges are of a target whose servers change their roles; there are none for any other.
func failoverGauges(target store.Target) (list []admin.Gauge) {
	t, ok := target.(failover)
	if !ok || !t.FailsOver() {
		return nil
	}
	st := t.Failover()
	add := func(name, help string, value float64) {
		list = append(list, admin.Gauge{Name: "target_" + name, Help: help, Value: value})
	}
	add("switches_total", "New primaries that were put in order.", float64(st.Switches))
	add("held_seconds_total", "Time for which operations were held up.", st.Held.Seconds())
	add("held_max_seconds", "The longest of these times.", st.HeldMax.Seconds())
	add("holding", "1 while operations are held up.", map[bool]float64{true: 1}[len(st.Holding) > 0])
	add("unknown_total", "Writes of which no answer came.", float64(st.Unknown))
	add("resolved_total", "Those of them that were found done.", float64(st.Resolved))
	add("put_back_total", "States that a new primary lacked and was told again.", float64(st.PutBack))
	add("lost_total", "States that a new primary lacked and that were not put back.", float64(st.Lost))
	for _, why := range slices.Sorted(maps.Keys(st.Left)) {
		add("left_"+why+"_total", "States that were not put back, for this reason (docs/redis-ha.md).", float64(st.Left[why]))
	}
	add("exposed_total", "Writes acknowledged between the last confirmation of a primary and its end.", float64(st.Exposed))
	add("shortfalls_total", "Critical writes that not all replicas confirmed in time.", float64(st.Shortfalls))
	add("remembered", "States that would be put back.", float64(st.Entries))
	add("remembered_bytes", "The memory that they take.", float64(st.Bytes))
	add("overflow_total", "States that were forgotten before their time, for want of room.", float64(st.Overflow))
	add("gateways", "Gateways that share the target and live.", float64(st.Gateways))
	add("forgotten_total", "Primaries that came back empty.", float64(st.Forgotten))
	add("evicted_total", "Keys that servers threw away for want of memory, as each gateway has seen it.", float64(st.Evicted))
	return list
}

var _ gateway.Upstream = (*redisstore.Store)(nil)
