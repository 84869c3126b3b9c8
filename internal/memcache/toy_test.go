package memcache

import (
	"maps"
	"strconv"
	"strings"
	"testing"
	"time"
)

// toy is a memcached made of this package over a map.
type toy struct {
	items map[string]toyItem
	cas   uint64 // the last one given out
	now   time.Time
}

type toyItem struct {
	value   string
	flags   uint32
	cas     uint64
	expires time.Time // zero: never
	fetched bool
}

func newToy() *toy { return &toy{items: map[string]toyItem{}, now: time.Now()} }

func (s *toy) clone() *toy { return &toy{maps.Clone(s.items), s.cas, s.now} }

// answer gives toy a stream in pieces and returns what it answers, how it ends, and how much it had answered when it first
// refused something, or -1.
func (s *toy) answer(t testing.TB, stream []byte, lim Limits, size func(int) int) (out []byte, end string, refused int) {
	t.Helper()
	refused = -1
	end = play(t, stream, lim, size, func(r *Request, err *Error) bool {
		if err != nil {
			if refused < 0 {
				refused = len(out)
			}
			out = r.AppendError(out, err)
			return false
		}
		out = s.do(r, out)
		return r.Op == OpQuit
	})
	return out, end, refused
}

func (s *toy) find(key []byte) (toyItem, bool) {
	it, ok := s.items[string(key)]
	if ok && !it.expires.IsZero() && !it.expires.After(s.now) {
		delete(s.items, string(key))
		return toyItem{}, false
	}
	return it, ok
}

// put stores it under a new CAS.
func (s *toy) put(key []byte, it toyItem) uint64 {
	s.cas++
	it.cas = s.cas
	s.items[string(key)] = it
	return it.cas
}

// deadline is when an item stored now with exptime ends; what is gone ends at once.
func (s *toy) deadline(exptime int64) time.Time {
	at, gone := Deadline(exptime, s.now)
	if gone {
		return time.Unix(1, 0)
	}
	return at
}

// do executes one request and appends the answer. It does what memcached does, not what a gateway should.
func (s *toy) do(r *Request, out []byte) []byte {
	switch r.Op {
	case OpGet, OpGetTouch, OpDebug:
		for _, key := range r.Keys {
			it, ok := s.find(key)
			if !ok {
				out = r.AppendResult(out, NotFound, 0)
				continue
			}
			if r.Op == OpGetTouch {
				it.expires = s.deadline(r.Exptime)
			}
			ttl := int64(-1)
			if !it.expires.IsZero() {
				ttl = int64(it.expires.Sub(s.now) / time.Second)
			}
			out = r.AppendItem(out, key, Item{Value: []byte(it.value), Flags: it.flags, CAS: it.cas, TTL: ttl, Fetched: it.fetched})
			if r.Op != OpDebug && !r.HasFlag('u') {
				it.fetched = true
			}
			s.items[string(key)] = it
		}
		return r.AppendEnd(out)
	case OpSet, OpAdd, OpReplace, OpAppend, OpPrepend:
		res, cas := s.store(r)
		return r.AppendResult(out, res, cas)
	case OpIncr, OpDecr:
		return s.count(r, out)
	case OpDelete:
		it, ok := s.find(r.Keys[0])
		switch {
		case !ok:
			return r.AppendResult(out, NotFound, 0)
		case r.HasCAS && r.CAS != it.cas:
			return r.AppendResult(out, Exists, 0)
		}
		delete(s.items, string(r.Keys[0]))
		return r.AppendResult(out, Done, 0)
	case OpTouch:
		it, ok := s.find(r.Keys[0])
		if !ok {
			return r.AppendResult(out, NotFound, 0)
		}
		it.expires, it.fetched = s.deadline(r.Exptime), true
		s.items[string(r.Keys[0])] = it
		return r.AppendResult(out, Done, it.cas)
	case OpFlush:
		if r.Exptime <= 0 {
			s.cas++
			clear(s.items)
		}
	case OpVersion:
		return r.AppendText(out, "1.6.18")
	case OpStats:
		switch {
		case len(r.Keys) == 0:
			out = r.AppendStat(out, "version", "1.6.18")
			return r.AppendEnd(out)
		case string(r.Keys[0]) == "reset":
			return r.AppendResult(out, Done, 0)
		}
		return r.AppendResult(out, NotFound, 0)
	case OpSASLList, OpSASLAuth, OpSASLStep:
		return r.AppendError(out, ErrUnknownCommand)
	}
	return r.AppendResult(out, Done, 0)
}

func (s *toy) store(r *Request) (Result, uint64) {
	key := r.Keys[0]
	old, ok := s.find(key)
	it := toyItem{value: string(r.Value), flags: r.Flags, expires: s.deadline(r.Exptime)}
	switch {
	case r.Op == OpAdd && ok, r.Op != OpSet && r.Op != OpAdd && !ok:
		return NotStored, 0
	case r.HasCAS && !ok:
		return NotFound, 0
	case r.HasCAS && r.CAS != old.cas:
		return Exists, 0
	case r.Op == OpAppend:
		it = toyItem{value: old.value + it.value, flags: old.flags, expires: old.expires}
	case r.Op == OpPrepend:
		it = toyItem{value: it.value + old.value, flags: old.flags, expires: old.expires}
	}
	return Done, s.put(key, it)
}

func (s *toy) count(r *Request, out []byte) []byte {
	key := r.Keys[0]
	it, ok := s.find(key)
	switch {
	case !ok && r.Create:
		cas := s.put(key, toyItem{value: strconv.FormatUint(r.Initial, 10), expires: s.deadline(r.Exptime)})
		return r.AppendNumber(out, r.Initial, cas)
	case !ok:
		return r.AppendResult(out, NotFound, 0)
	}
	digits, _, _ := strings.Cut(it.value, " ")
	n, err := strconv.ParseUint(digits, 10, 64)
	switch {
	case it.value != "" && r.HasCAS && r.CAS != it.cas:
		return r.AppendResult(out, Exists, 0)
	case err != nil:
		return r.AppendError(out, ErrNotNumber)
	case r.Op == OpIncr:
		n += r.Delta
	default:
		n -= min(n, r.Delta)
	}
	was := len(it.value)
	it.value = strconv.FormatUint(n, 10)
	if pad := was - len(it.value); pad > 0 {
		it.value += strings.Repeat(" ", pad) // memcached counts in place
	}
	return r.AppendNumber(out, n, s.put(key, it))
}
