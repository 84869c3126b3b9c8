package redis

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"
	"github.com/sessile/sessile/store"
)

// The mark of an origin. One server has one. Those of a Cluster have it in each slot, since a write is compared with it in one
// step, and a step sees one slot:
//
// The mark of home is the one that counts, and has a serial that grows. A swap changes it, and notes there that the other
// slots are to be told; tells them all; and takes the note away. Who reads the mark and finds the note tells the others, too,
// before it says anything. So nobody knows the new mark while something can still be written under the old one:
//
//	A swaps, in home     B reads the new one, and serves by it     C writes under the old one, in a slot that was not told yet
//
// A slot takes a mark with a higher serial than its own only, so what comes late undoes nothing. When the mark goes, a serial
// stays in its place for a day. Shards that are away are told when they are back, and keep nobody from going on meanwhile: who still
// went by the old mark would have to reach them and not home, for less than a lease.
//
// A slot that was not looked at since its server may have got another memory is looked at when the mark is asked for. One with
// an older mark is told again; one with a newer one knows better than home, which was told first. One without any has lost
// its sessions with it: then the identity is taken from all, as one server that has lost its memory has none, and a person has
// to decide (`sessile migrate repair`). The seal stays: it says who must not be served from what is left. Only where there was no
// identity before are slots told that have no mark.

// anyMark stands for no condition.
const anyMark = "*"

// encodeMark writes m as it is compared: "" for the zero Mark.
func encodeMark(m store.Mark) (string, error) {
	if m == (store.Mark{}) {
		return "", nil
	}
	b, err := json.Marshal(m)
	if back, unreadable := decodeMark(string(b)); err != nil || unreadable != nil || back != m {
		return "", fmt.Errorf("store/redis: mark: %w: it cannot be written and read again", store.ErrInvalid)
	}
	return string(b), nil
}

func decodeMark(text string) (m store.Mark, err error) {
	if text == "" {
		return m, nil
	}
	d := json.NewDecoder(bytes.NewReader([]byte(text)))
	d.DisallowUnknownFields() // a newer version's: its meaning is not known
	if err := d.Decode(&m); err != nil {
		return store.Mark{}, unreadableMark(err)
	}
	return m, nil
}

func unreadableMark(err error) error {
	return fmt.Errorf("store/redis: %w: the mark of the origin cannot be read: %w", store.ErrUnavailable, err)
}

// A stamp is a mark as a slot of a Cluster has it.
type stamp struct {
	raw    string
	serial uint64
	note   string // of home
	text   string // the mark as it is compared
}

// The notes that the other slots are to be told: those that have a mark; all.
const (
	tellMarked = "~"
	tellAll    = "!"
)

func parseStamp(raw string) (s stamp, err error) {
	if s.raw = raw; raw == "" {
		return s, nil
	}
	serial, text, ok := strings.Cut(raw, " ")
	if n := len(serial) - 1; n >= 0 && strings.Contains(tellMarked+tellAll, serial[n:]) {
		serial, s.note = serial[:n], serial[n:]
	}
	s.text = text
	if s.serial, err = strconv.ParseUint(serial, 10, 64); err != nil || !ok {
		return s, unreadableMark(fmt.Errorf("%.40q", raw))
	}
	return s, nil
}

// textOf returns how a mark is compared that lies under markKey.
func (s *Store) textOf(raw string) (string, error) {
	if s.cluster == nil {
		return raw, nil
	}
	at, err := parseStamp(raw)
	return at.text, err
}

func (s *Store) parseMark(raw string) (m store.Mark, err error) {
	text, err := s.textOf(raw)
	if err != nil {
		return m, err
	}
	return decodeMark(text)
}

// markOf is the name of the mark that writes of the session named data are compared with.
func (s *Store) markOf(data string) string { return markKey(s.tag(s.slotOf(data)), s.opt.Prefix) }

func (s *Store) homeMark() string { return markKey(s.homeTag(), s.opt.Prefix) }

// Mark implements store.Marked.
func (s *Store) Mark(ctx context.Context) (m store.Mark, err error) {
	r := s.ask(ctx, "mark", "GET", s.homeMark())
	if raw := r.text(0); r.err == nil {
		m, r.err = s.parseMark(raw)
	}
	return m, r.fail()
}

// Mark implements store.Origin. It tells the time, too, and who serves from an origin reads its mark all the time.
func (o *Origin) Mark(ctx context.Context) (m store.Mark, err error) {
	if o.cluster == nil {
		raw, err := o.readHome(ctx)
		if err != nil {
			return m, err
		}
		return decodeMark(raw)
	}
	home, err := o.everywhere(ctx)
	if err != nil {
		return m, err
	}
	return decodeMark(home.text)
}

func (o *Origin) readHome(ctx context.Context) (raw string, err error) {
	var at *wire
	r := o.call(ctx, "mark", store.ErrUnavailable, markScript, []string{o.homeMark()}, nil, func(w *wire, _ []string) { at = w }, nil)
	if now, text := r.int(1), r.text(2); r.err == nil {
		raw = text
		at.clock.tells(now)
	}
	return raw, r.fail()
}

// SwapMark implements store.Origin. Replicas have the mark, too, before it answers: there are few, and one that a failover
// lost would be an older one.
func (o *Origin) SwapMark(ctx context.Context, old, next store.Mark) error {
	was, err := encodeMark(old)
	if err != nil {
		return err
	}
	is, err := encodeMark(next)
	if err != nil {
		return err
	}
	if o.cluster == nil {
		err := o.write(store.Replicated(ctx), "swap mark", swapScript, nil, o.homeMark(), was, is).fail()
		if errors.Is(err, store.ErrSealed) {
			return store.ErrConflict
		}
		return err
	}
	for {
		home, err := o.everywhere(ctx) // home may have an older memory, and another one know better
		switch {
		case err != nil:
			return err
		case home.text != was:
			return store.ErrConflict
		}
		note := tellMarked
		if old.Identity == "" || home.note == tellAll {
			note = tellAll
			if o.away() { // what is told later could not be told from what has lost its mark by then
				return fmt.Errorf("store/redis: swap mark: %w: %w", store.ErrUnavailable, errAway)
			}
		}
		if err := o.stamp(ctx, home, 0, note, is); errors.Is(err, store.ErrConflict) {
			continue // it may be the note that somebody has taken away
		} else if err != nil {
			return err
		}
		switch home, err = o.everywhere(ctx); {
		case err != nil:
			return fmt.Errorf("store/redis: swap mark: %w: not all slots were told: %v", store.ErrUnknown, err)
		case home.text != is: // by somebody else, since, or because slots knew better
			return fmt.Errorf("store/redis: swap mark: %w: it is another one by now", store.ErrUnknown)
		}
		return nil
	}
}

// stamp replaces home, if that is still what is there. Serial 0 is the next one.
func (o *Origin) stamp(ctx context.Context, home stamp, serial uint64, note, text string) error {
	return o.write(store.Replicated(ctx), "swap mark", homeScript, nil, o.homeMark(), anyMark, home.raw, digits(serial), note, text).fail()
}

// told is which slots of a Cluster are known to have the mark of home.
type told struct {
	turn   chan struct{}            // of who looks; has room for one
	memory [slotCount]atomic.Uint64 // of the server that the slot had when it was looked at; 0: it is to be looked at
	serial atomic.Uint64            // the highest that home had
	own    atomic.Uint64            // the memory of home's server when all was forgotten because of that
	noted  uint64                   // that of home when it had a note; guarded by turn
}

// doubt has the slot of a session looked at when the mark is asked for next time.
func (o *Origin) doubt(data string) {
	if o.cluster != nil {
		o.told.memory[slotOf(data)].Store(0)
	}
}

// forget has all slots looked at.
func (t *told) forget() {
	for slot := range t.memory {
		t.memory[slot].Store(0)
	}
}

// due reports whether there is anything to do for everywhere.
func (o *Origin) due(home stamp) bool {
	at := o.cluster.memory(o.home())
	older := o.older(home)
	if o.told.own.Swap(at) != at || older { // home may have another memory
		o.told.forget()
	}
	for slot := range slotCount {
		if o.told.memory[slot].Load() != o.cluster.memory(slot) {
			return true
		}
	}
	return older || home.note != ""
}

// older reports whether home has had a higher serial.
func (o *Origin) older(home stamp) bool {
	for {
		highest := o.told.serial.Load()
		if home.serial < highest {
			return true
		}
		if o.told.serial.CompareAndSwap(highest, home.serial) {
			return false
		}
	}
}

var (
	errAway  = errors.New("not all of the Cluster is there")
	errOlder = errors.New("home is older than it was, and not all slots can be asked")
	errMarks = errors.New("the mark changes all the time, or its slots do not agree about it")
)

// readStamp is readHome in a Cluster. It reports whether there is anything to do for everywhere.
func (o *Origin) readStamp(ctx context.Context) (home stamp, due bool, err error) {
	raw, err := o.readHome(ctx)
	if err == nil {
		home, err = parseStamp(raw)
	}
	return home, err == nil && o.due(home), err
}

// everywhere sees to it that all slots have the mark of home, and returns that.
func (o *Origin) everywhere(ctx context.Context) (home stamp, err error) {
	home, due, err := o.readStamp(ctx)
	if err != nil || !due {
		return home, err
	}
	select {
	case o.told.turn <- struct{}{}:
		defer func() { <-o.told.turn }()
	case <-ctx.Done():
		return home, fmt.Errorf("store/redis: mark: %w: %w", store.ErrUnavailable, context.Cause(ctx))
	}
	for range 10 {
		at := o.cluster.memory(o.home())
		if home, due, err = o.readStamp(ctx); err != nil || !due {
			return home, err
		}
		if home.note != "" && home.serial != o.told.noted {
			o.told.forget()
			o.told.noted = home.serial
		}
		latest, lost, away, err := o.spread(ctx, home)
		switch {
		case latest.raw != "" && home.raw != "":
			o.told.forget() // those that were of home's mind are not any more
			serial := latest.serial
			if serial == home.serial { // home was older when it counted
				serial = 0
			}
			err = o.stamp(ctx, home, serial, tellMarked, latest.text)
		case latest.raw != "":
			err = o.bare(ctx, home, latest.text)
		case lost && home.note != tellAll:
			err = o.bare(ctx, home, home.text)
		case o.older(home) && (err != nil || away):
			return home, fmt.Errorf("store/redis: mark: %w: %w", store.ErrUnavailable, cmp.Or(err, errOlder))
		case err != nil && (home.note != "" || o.told.memory[o.home()].Load() != at):
			return home, err
		case home.note == tellAll && away:
			return home, fmt.Errorf("store/redis: mark: %w: %w", store.ErrUnavailable, errAway)
		case home.note == "" || away: // what could not be looked at is another time
			if o.told.serial.Store(home.serial); err == nil {
				o.told.memory[o.home()].Store(at)
			}
			return home, nil
		default:
			err = o.stamp(ctx, home, home.serial, "", home.text)
		}
		if err != nil && !errors.Is(err, store.ErrConflict) {
			return home, err
		}
	}
	return home, fmt.Errorf("store/redis: mark: %w: %w", store.ErrUnavailable, errMarks)
}

// bare makes the mark that text says that of an origin without an identity.
func (o *Origin) bare(ctx context.Context, home stamp, text string) error {
	m, err := decodeMark(text)
	if err != nil {
		return err
	}
	if m.Identity != "" {
		o.opt.Logger.Error("redis: a part of the origin has lost its memory, and the mark with it: see `sessile migrate repair`")
	}
	m.Identity = ""
	if text, err = encodeMark(m); err != nil {
		return err
	}
	return o.stamp(ctx, home, 0, tellAll, text)
}

// markPatience is how long is waited for slots that are only looked at.
const markPatience = 300 * time.Millisecond

// spread tells the slots that may not have it what home says. Where a slot has a later mark, or another one with the same
// serial, it returns the latest; lost is whether there is one without any that should have one, away whether some are out of
// reach.
func (o *Origin) spread(ctx context.Context, home stamp) (latest stamp, lost, away bool, err error) {
	var slots []int
	var memory []uint64
	var parts []part
	split, own := o.cluster.splitSlots(), o.home()
	for slot := range slotCount {
		m := o.cluster.memory(slot) // before anything is asked
		if slot == own || o.told.memory[slot].Load() == m {
			continue
		}
		if o.cluster.away(slot, split) {
			away = true
			continue
		}
		slots, memory = append(slots, slot), append(memory, m)
		parts = append(parts, part{[]string{markKey(o.tag(slot), o.opt.Prefix)}, nil})
	}
	if home.note == "" && o.told.memory[own].Load() == o.cluster.memory(own) { // what is not looked at now is another time
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, markPatience, o.errTimeout)
		defer cancel()
	}
	err = o.parts(ctx, "mark", store.ErrUnavailable, spreadScript, []string{digits(home.serial), home.text, home.note}, parts, func(i int, m *rueidis.RedisMessage) error {
		if n, err := m.AsInt64(); err == nil {
			if lost = lost || n != 0; n == 0 {
				o.told.memory[slots[i]].Store(memory[i])
			}
			return nil
		}
		raw, err := m.ToString()
		if err != nil {
			return err
		}
		at, err := parseStamp(raw)
		if err == nil && at.serial > latest.serial {
			latest = at
		}
		return err
	})
	var re *replyError
	if errors.As(err, &re) { // it takes no writes, nobody's
		return latest, lost, true, nil
	}
	return latest, lost, away, err
}

// away reports whether there is a slot that cannot be told anything now.
func (o *Origin) away() bool {
	split := o.cluster.splitSlots()
	for slot := range slotCount {
		if o.cluster.away(slot, split) {
			return true
		}
	}
	return false
}

func (c *cluster) away(slot int, split map[int]*shard) bool {
	h := c.owner[slot].Load()
	return h == nil || split[slot] != nil || h.gate.shut.Load()&^forgotten != 0
}
