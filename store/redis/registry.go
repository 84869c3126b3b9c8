package redis

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Gateways of a failover target register in it, so that whoever puts a write back onto nothing can first hear from all of
// them that they know of no later delete: recover.go. The registry is a hash, gateway to record, with a field of its own
// for what a person has decided about a server that has forgotten everything.

func registryKey(tag string) string { return reserved + "gateways" + tag }

const (
	beatEvery  = 300 * time.Millisecond
	countEvery = 10 // beats
	// deadAfter is for how long a gateway may say nothing before nobody waits for it, by the clock of who looks, while it
	// could look.
	deadAfter = 2 * time.Second
	// strikeAfter is when the record of a silent gateway is struck out. It costs nothing until then.
	strikeAfter = 10 * time.Minute
)

// A record is what a gateway says of itself: BEAT MARKS MEMORY STEP PUTS SEEN NOTES.
type record struct {
	beat   uint64 // counts up: whoever sees another one knows that the gateway lives
	marks  bool   // its deletes leave gone markers
	memory string // the server (serverID.memory) that step is about; "-" is none
	step   step
	puts   uint64 // how much it has put back: whoever left something may have to look again
	seen   uint64 // how much all had put back when it looked last, and what it has put back then
	notes  uint64 // how much it had noted in its window: what was noted later, a server with this record may lack
}

// A step is how far a gateway is in putting a server in order.
type step uint8

const (
	disordered step = iota
	noDeletes       // it knows of no delete that the server does not know of
	noWrites        // nor of a write, but for what it has left
	serving         // it has let operations go on
)

func (r record) String() string {
	marks := 0
	if r.marks {
		marks = 1
	}
	memory := r.memory
	if memory == "" {
		memory = "-"
	}
	return fmt.Sprintf("%d %d %s %d %d %d %d", r.beat, marks, memory, r.step, r.puts, r.seen, r.notes)
}

func parseRecord(text string) (r record, ok bool) {
	f := strings.Fields(text)
	if len(f) != 7 {
		return r, false
	}
	ok = true
	number := func(text string) uint64 {
		n, err := strconv.ParseUint(text, 10, 64)
		ok = ok && err == nil
		return n
	}
	r = record{beat: number(f[0]), marks: f[1] == "1", memory: f[2], step: step(number(f[3])), puts: number(f[4]), seen: number(f[5]), notes: number(f[6])}
	return r, ok
}

// A fleet is what one gateway knows of the others. It is pure: what was read, and when, comes from outside.
type fleet struct {
	self    string
	members map[string]*member
	looked  time.Time // last; zero: never
	memory  string    // of the server that was looked at
	bare    time.Time // when last a gateway was there whose deletes leave no markers
}

type member struct {
	record
	text   string
	seenOn string        // the server
	silent time.Duration // for which we could see it, and it said nothing
	met    bool          // it has said something since we came, or came later: it knows of us
}

func newFleet(self string) *fleet { return &fleet{self: self, members: map[string]*member{}} }

// note takes the registry as it was at that time on the server with that memory. It returns the records that are to be
// struck out.
//
// Who was not there yet, or is there with an older record, may be on its way from the server before: a registry is
// replicated like everything else. Only who was seen on this server and is not there any more has left.
func (f *fleet) note(all map[string]string, memory string, now time.Time) (strike []string) {
	passed, first := time.Duration(0), f.looked.IsZero()
	if !first {
		passed = min(now.Sub(f.looked), 2*beatEvery) // it cannot have been seen while we could not look
	}
	for _, m := range f.members {
		if f.memory != memory && m.lives() {
			m.silent, passed = 0, 0 // it may be on its way here
		}
	}
	f.looked, f.memory = now, memory
	for id, text := range all {
		r, ok := parseRecord(text)
		if id == f.self || !ok {
			continue
		}
		m := f.members[id]
		switch {
		case m == nil:
			m = &member{met: !first}
			f.members[id] = m
		case m.text == text:
			m.silent += passed
		default:
			m.silent, m.met = 0, true
		}
		m.record, m.text, m.seenOn = r, text, memory
		if m.silent > strikeAfter {
			strike = append(strike, id, text)
		}
		if !m.marks && m.lives() {
			f.bare = now
		}
	}
	for id, m := range f.members {
		if _, there := all[id]; there {
			continue
		}
		if m.silent += passed; m.seenOn == memory || !m.lives() {
			delete(f.members, id)
		} else if !m.marks {
			f.bare = now // it is on its way
		}
	}
	return strike
}

// moved is called when the registry has another name: who is not there yet is on its way, as to another server.
func (f *fleet) moved() {
	for _, m := range f.members {
		m.seenOn = ""
		if m.lives() {
			m.silent = 0
		}
	}
}

func (m *member) lives() bool { return m.silent < deadAfter }

// living counts the gateways, this one included.
func (f *fleet) living() (n int) {
	n = 1
	for _, m := range f.members {
		if m.lives() {
			n++
		}
	}
	return n
}

// at reports whether all that live have taken that step on the server with that memory. One whose deletes leave no
// markers remembers nothing, and puts nothing back.
func (f *fleet) at(s step, memory string) bool {
	for _, m := range f.members {
		if m.lives() && m.marks && (m.memory != memory || m.step < s) {
			return false
		}
	}
	return true
}

// met reports whether all that live know of us.
func (f *fleet) met() bool {
	for _, m := range f.members {
		if m.lives() && !m.met {
			return false
		}
	}
	return true
}

// puts adds up what the others have put back on the server with that memory, whether they live or not.
func (f *fleet) puts(memory string) (n uint64) {
	for _, m := range f.members {
		if m.memory == memory {
			n += m.puts
		}
	}
	return n
}

// seen reports whether all that live, and do not serve yet, have looked since so much was put back.
func (f *fleet) seen(puts uint64) bool {
	for _, m := range f.members {
		if m.lives() && m.marks && m.step < serving && m.record.seen != puts {
			return false
		}
	}
	return true
}

// knows reports whether any of these is one that we know, and was written before the server had that memory: who is quicker
// than we are is registered anew, on an empty server, too.
func (f *fleet) knows(all map[string]string, memory string) bool {
	for id, text := range all {
		if r, ok := parseRecord(text); ok && r.memory != memory && (id == f.self || f.members[id] != nil) {
			return true
		}
	}
	return false
}

// trusts reports whether a gateway that we have known for a while has found that the server with that memory has not forgotten
// everything: it may know sessions that we do not. One that has just begun takes an empty server for a new one.
func (f *fleet) trusts(all map[string]string, memory string) bool {
	for id, text := range all {
		m := f.members[id]
		if r, ok := parseRecord(text); ok && m != nil && m.memory != memory && m.beat >= minBeats && r.memory == memory && r.step > disordered {
			return true
		}
	}
	return false
}
