package gateway

import (
	"bytes"
	"context"
	"errors"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sessile/sessile/internal/resp"
	"github.com/sessile/sessile/store"
)

// The access set. A handler that writes its sessions without a TTL notes in one sorted set when it wrote each (ZADD), and
// collects by it: it asks who was written before some time (ZRANGEBYSCORE), deletes these sessions (DEL) and takes them
// out of the set (ZREM). The set lies in the target, in every phase, and whoever removes the sessions there spares it.
//
// It is best effort: nobody is kept from a page because of it. While the target is away, its commands answer as if the
// set were empty. To the collector there is nobody to collect then; and to who writes, ZADD says that the member is new,
// since 0 would be the answer to an update, which some handlers take for a failure.
//
// So a score may be older than the session: it was written while the target was away, or by an application server that
// does not keep the set, because it is still on the origin or uses another handler; or the target came back with an older
// memory. A collector that believed such a score would log out somebody who is there. Therefore nobody is told of a score
// that is older than what the session's own deadline says about its last write: see lastWrite.

// SortedSets is where the access set lies: the site's target.
type SortedSets interface {
	// Sorted runs one command of Redis about a sorted set, and returns the answer without its nesting: numbers and scores
	// as text, nothing for null.
	Sorted(ctx context.Context, args ...string) ([]string, error)
}

// setPatience is how long a command about the set waits for the target. In off and dual-write nobody else would notice
// that it hangs.
const setPatience = time.Second

// maxMembers is the most that a range answers, however large an answer may be.
const maxMembers = 100_000

// sorted is a command about the access set.
type sorted struct {
	args  []string // as it is sent
	empty int64    // what it answers, as a number, if the set is empty
	step  string   // ZADD with INCR: the increment

	byScore    bool // of a range
	withScores bool
	from, to   int64   // by index
	max        float64 // by score
	exclusive  bool    // it does not include max
	offset     int64
	count      int64 // negative: all
}

const (
	errWrongType refusal = "WRONGTYPE Operation against a key holding the wrong kind of value"

	textNotFloat = "ERR value is not a valid float"
	textNotRange = "ERR min or max is not a float"
)

// parseSorted begins a command about the set, unless args name another key: that of a session, or nobody's.
func (r *request) parseSorted(args [][]byte) bool {
	switch {
	case r.site.AccessSet == "":
		r.fail = "ERR sessile: '" + strings.ToLower(r.cmd.name) + "' is not served: " + aString
	case string(args[1]) != r.site.AccessSet:
		r.fail = string(errWrongType)
	default:
		r.sorted = &sorted{args: []string{r.cmd.name, r.site.AccessSet}}
		return true
	}
	return false
}

func (r *request) parseZAdd(args [][]byte) {
	if !r.parseSorted(args) {
		return
	}
	z, rest, incr := r.sorted, args[2:], false
	for ; len(rest) > 0; rest = rest[1:] {
		var buf [8]byte
		name := string(upper(buf[:0], rest[0]))
		cond := condition(name)
		if cond == 0 && name != "INCR" && name != "CH" {
			break
		}
		r.only |= cond
		incr = incr || name == "INCR"
		z.args = append(z.args, name)
	}
	switch {
	case len(rest) == 0 || len(rest)%2 != 0:
		r.fail = textSyntax
	case r.only&ifAbsent != 0 && r.only&ifPresent != 0:
		r.fail = "ERR XX and NX options at the same time are not compatible"
	case r.only&ifLater != 0 && r.only != ifLater && r.only != ifLater|ifPresent, r.only&ifEarlier != 0 && r.only&ifAbsent != 0:
		r.fail = "ERR GT, LT, and/or NX options at the same time are not compatible"
	case incr && len(rest) > 2:
		r.fail = "ERR INCR option supports a single increment-element pair"
	}
	added := map[string]bool{}
	for ; len(rest) > 0 && r.fail == ""; rest = rest[2:] {
		score, ok := parseFloat(rest[0])
		switch member := string(rest[1]); {
		case !ok:
			r.fail = textNotFloat
		case len(member) > r.site.Limits.Key:
			r.fail = failure(store.ErrInvalid)
		default:
			z.step = formatScore(score)
			z.args = append(z.args, z.step, member)
			added[member] = true
		}
	}
	if r.only&ifPresent == 0 {
		z.empty = int64(len(added))
	}
	if !incr {
		z.step = ""
	}
}

// parseZRem takes what comes behind the set's name as it is: members, or nothing.
func (r *request) parseZRem(args [][]byte) {
	if r.parseSorted(args) {
		for _, a := range args[2:] {
			r.sorted.args = append(r.sorted.args, string(a))
		}
	}
}

// parseZBounds is for ZCOUNT and ZREMRANGEBYSCORE.
func (r *request) parseZBounds(args [][]byte) {
	if r.parseSorted(args) {
		r.bounds(args[2], args[3])
	}
}

func (r *request) parseZRangeByScore(args [][]byte) {
	if r.parseSorted(args) {
		r.sorted.byScore = true
		r.parseRange(args)
	}
}

func (r *request) parseZRange(args [][]byte) {
	if r.parseSorted(args) {
		r.parseRange(args)
	}
}

func (r *request) parseRange(args [][]byte) {
	z := r.sorted
	z.count = -1
	limit := false
	for i := 4; i < len(args); i++ {
		var buf [16]byte
		switch name := string(upper(buf[:0], args[i])); {
		case name == "WITHSCORES":
			z.withScores = true
		case name == "BYSCORE" && r.cmd.name == "ZRANGE":
			z.byScore = true
		case (name == "REV" || name == "BYLEX") && r.cmd.name == "ZRANGE":
			r.fail = "ERR sessile: 'zrange' with " + name + " is not served"
			return
		case name == "LIMIT" && i+2 < len(args):
			var one, two bool
			z.offset, one = parseInt(args[i+1])
			z.count, two = parseInt(args[i+2])
			if limit = true; !one || !two {
				r.fail = textNotInteger
				return
			}
			i += 2
		default:
			r.fail = textSyntax
			return
		}
	}
	switch {
	case z.byScore:
		z.args[0] = "ZRANGEBYSCORE"
		r.bounds(args[2], args[3])
	case limit && z.count != -1:
		r.fail = "ERR syntax error, LIMIT is only supported in combination with either BYSCORE or BYLEX"
	default:
		var one, two bool
		z.from, one = parseInt(args[2])
		z.to, two = parseInt(args[3])
		if !one || !two {
			r.fail = textNotInteger
		}
	}
}

// bounds adds a range of scores to the command, "(" before a bound that is not part of it.
func (r *request) bounds(args ...[]byte) {
	for _, a := range args {
		number, exclusive := bytes.CutPrefix(a, []byte("("))
		score, ok := parseFloat(number)
		if !ok {
			r.fail = textNotRange
			return
		}
		text := formatScore(score)
		if r.sorted.max, r.sorted.exclusive = score, exclusive; exclusive {
			text = "(" + text
		}
		r.sorted.args = append(r.sorted.args, text)
	}
}

// parseFloat reads a score as Redis does (strtod), but for its hexadecimal form.
func parseFloat(b []byte) (float64, bool) {
	if len(b) == 0 || len(b) > 128 || bytes.ContainsAny(b, "_xX") {
		return 0, false
	}
	f, err := strconv.ParseFloat(string(b), 64)
	return f, err == nil && !math.IsNaN(f)
}

// formatScore writes a score as Redis 7.0 does.
func formatScore(f float64) string {
	switch {
	case math.IsInf(f, 1):
		return "inf"
	case math.IsInf(f, -1):
		return "-inf"
	}
	return strconv.FormatFloat(f, 'g', 17, 64)
}

// accessSet runs a command about the set.
func (s *Server) accessSet(r *request, res *result) {
	z := r.sorted
	if r.cmd.reply == replyMembers {
		s.members(z, res)
		return
	}
	answer, err := s.sorted(z.args...)
	switch {
	case err != nil && z.step != "" && z.empty > 0: // INCR of nothing
		answer = []string{z.step}
	case err != nil && z.step == "" && r.cmd.reply != replyScore:
		answer = []string{strconv.FormatInt(z.empty, 10)}
	}
	if r.cmd.reply == replyScore && len(answer) == 1 {
		ctx, cancel := context.WithTimeout(s.ctx, patienceOf(s.site.Hold))
		answer[0], _ = s.newer(ctx, new(bool), z.args[2], answer[0])
		cancel()
	}
	if res.found = len(answer) == 1; res.found {
		res.data = []byte(answer[0])
		res.n, _ = strconv.ParseInt(answer[0], 10, 64) // 0: a score
	}
}

// sorted asks the target.
func (s *Server) sorted(args ...string) ([]string, error) {
	ctx, cancel := context.WithTimeout(s.ctx, min(setPatience, patienceOf(s.site.Hold)))
	defer cancel()
	answer, err := s.site.Sets.Sorted(ctx, args...)
	if err != nil {
		s.count.setLost.Add(1)
	}
	if away := err != nil; s.setAway.Swap(away) != away {
		if away {
			s.log.Warn("the access set cannot be asked: its commands answer as if it were empty", "error", err)
		} else {
			s.log.Info("the access set is back")
		}
	}
	return answer, err
}

// members answers a range. It has an end in any case: a collector that is not told of everybody goes on next time. What
// the set says too early of a session that is in use is left out where that matters, and put right.
func (s *Server) members(z *sorted, res *result) {
	most := int64(min(s.site.Limits.Output/(s.site.Limits.Key+64), maxMembers))
	args := slices.Clone(z.args)
	if z.byScore {
		count := z.count
		if count < 0 || count > most {
			count = most
		}
		args = append(args, "WITHSCORES", "LIMIT", strconv.FormatInt(z.offset, 10), strconv.FormatInt(count, 10))
	} else {
		from, to := z.from, z.to
		if from < 0 || to < 0 {
			card, err := s.sorted("ZCARD", s.site.AccessSet)
			if err != nil || len(card) != 1 {
				return
			}
			n, _ := strconv.ParseInt(card[0], 10, 64)
			if from < 0 {
				from = max(0, from+n)
			}
			if to < 0 {
				to += n
			}
		}
		if to < from {
			return
		}
		if to-from >= most {
			to = from + most - 1
		}
		args = append(args, strconv.FormatInt(from, 10), strconv.FormatInt(to, 10), "WITHSCORES")
	}
	answer, err := s.sorted(args...)
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(s.ctx, patienceOf(s.site.Hold))
	defer cancel()
	size, dark := 0, false
	late := []string{"ZADD", s.site.AccessSet, "XX", "GT"}
	for pair := range slices.Chunk(answer, 2) {
		if len(pair) < 2 {
			break
		}
		member, score := pair[0], pair[1]
		collecting := z.byScore && !math.IsInf(z.max, 1)
		if z.withScores || collecting {
			var sure bool
			score, sure = s.newer(ctx, &dark, member, score)
			at, _ := strconv.ParseFloat(score, 64)
			switch outside := at > z.max || z.exclusive && at == z.max; {
			case !collecting:
			case !sure:
				continue
			case outside:
				late = append(late, score, member)
				continue
			}
		}
		if size += len(member) + len(score); size > s.site.Limits.Output {
			*res = result{err: errTooLarge}
			return
		}
		res.values = append(res.values, []byte(member))
		if z.withScores {
			res.values = append(res.values, []byte(score))
		}
	}
	if len(late) > 4 {
		s.sorted(late...) // or the next collector asks for it again
	}
}

// newer returns the score of member, or the time of its session's last write where that is later, and whether that is
// known. Of a session of which nothing can be known, it is now: nobody is collected who might be there.
func (s *Server) newer(ctx context.Context, dark *bool, member, score string) (at string, sure bool) {
	last, sure := s.lastWrite(ctx, dark, member)
	if last.IsZero() {
		return score, sure
	}
	f, err := strconv.ParseFloat(score, 64)
	unix := last.Unix()
	if f > 1e11 { // in seconds that would be the year 5138
		unix = last.UnixMilli()
	}
	if err != nil || float64(unix) <= f {
		return score, sure
	}
	return strconv.FormatInt(unix, 10), sure
}

// lastWrite says when the session of member, its id with or without the site's prefix, was written last, as far as its
// deadline tells: zero where there is no such session. One that was given a longer life than the site's may have been
// written just now. dark is set once the store did not answer; then it is not asked for all the others.
func (s *Server) lastWrite(ctx context.Context, dark *bool, member string) (last time.Time, sure bool) {
	k := s.site.key([]byte(s.site.Prefix + strings.TrimPrefix(member, s.site.Prefix)))
	if k.err != nil || k.lock {
		return last, true
	}
	now := time.Now()
	if *dark {
		return now, false
	}
	rec, err := s.site.Store.Inspect(ctx, k.id)
	switch {
	case errors.Is(err, store.ErrAbsent):
		return last, true
	case errors.Is(err, store.ErrInvalid): // too large for us, say, and in use at an application server that is still on the origin
		return now, false
	case err != nil:
		*dark = !errors.Is(err, errors.ErrUnsupported)
		return now, false
	case rec.Expires.IsZero() || s.site.Lifetime == 0:
		return now, true
	}
	// What a table says in whole seconds comes back less a fraction of a millisecond: that is not to be the second before.
	if last = rec.Expires.Add(100*time.Millisecond - s.site.Lifetime); last.After(now) {
		last = now
	}
	return last, true
}

// appendScore writes a score, null where there is none.
func appendScore(b []byte, proto int, text []byte, found bool) []byte {
	if !found || proto < 3 {
		return appendValue(b, proto, text, found)
	}
	return append(append(append(b, ','), text...), "\r\n"...)
}

// appendMembers writes a range.
func appendMembers(b []byte, proto int, values [][]byte, withScores bool) []byte {
	if !withScores || proto < 3 {
		b = resp.AppendArrayLen(b, len(values))
		for _, v := range values {
			b = resp.AppendBulk(b, v)
		}
		return b
	}
	b = resp.AppendArrayLen(b, len(values)/2)
	for pair := range slices.Chunk(values, 2) {
		b = resp.AppendBulk(resp.AppendArrayLen(b, 2), pair[0])
		b = appendScore(b, proto, pair[1], true)
	}
	return b
}
