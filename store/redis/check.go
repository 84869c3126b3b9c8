package redis

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"
	"github.com/sessile/sessile/store"
)

// Check implements store.Checker.
func (o *Origin) Check(ctx context.Context) (f store.Findings, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*o.opt.Timeout)
	defer cancel()
	f.Require = []string{"every application server keeps all settings of its session handler but the address, until `complete`"}
	for _, look := range []func(context.Context, *store.Findings) error{o.checkServer, o.checkRights, o.checkSample} {
		err := look(ctx, &f)
		switch {
		case err != nil && len(f.Against) > 0: // that is why, most likely
			return f, nil
		case err != nil:
			return f, err
		}
	}
	return f, nil
}

// refused reports whether err is the server's answer that this user may not do that, or that there is no such command.
func refused(err error) bool {
	var re *replyError
	return errors.As(err, &re) && re.silent()
}

func (o *Origin) checkServer(ctx context.Context, f *store.Findings) error {
	info, err := o.Info(ctx)
	if refused(err) {
		f.Advice = append(f.Advice, "this user may not run INFO, so nothing is known of the server: +info in its ACL")
		return nil
	}
	if err != nil {
		return err
	}
	number := func(name string) int64 {
		n, _ := strconv.ParseInt(info[name], 10, 64) // 0: not known
		return n
	}
	used, most, policy := number("used_memory"), number("maxmemory"), info["maxmemory_policy"]
	kept, durable := o.persistence(ctx, info)
	place := fmt.Sprintf("%s, database %d", info["role"], o.opt.Database)
	if o.cluster != nil {
		place = fmt.Sprintf("a Cluster of %d primaries", len(o.cluster.serving()))
	}
	f.Facts = append(f.Facts,
		fmt.Sprintf("Redis %s, %s: sessions are strings whose names begin with %q", info["redis_version"], place, o.opt.Prefix),
		fmt.Sprintf("memory: %d bytes used, maxmemory %d, maxmemory-policy %s", used, most, policy),
		"on disk: "+kept)

	if major, _, _ := strings.Cut(info["redis_version"], "."); len(major) == 1 && major < "7" {
		f.Against = append(f.Against, "Redis "+info["redis_version"]+": 7.0 or later is needed")
	}
	if info["role"] == "slave" {
		f.Against = append(f.Against, "the server is a replica, which takes no writes: name the primary")
	}
	if info["cluster_enabled"] == "1" && o.cluster == nil {
		f.Against = append(f.Against, "the server is a node of a Cluster: name it as one, redis-cluster://")
	}
	if most > 0 {
		switch {
		case strings.HasPrefix(policy, "allkeys-"):
			f.Against = append(f.Against, "maxmemory-policy "+policy+" may evict the mark in which origin and move find each other, and then nobody is served: "+
				"CONFIG SET maxmemory-policy volatile-lru, which leaves alone what has no deadline, or noeviction")
		case strings.HasPrefix(policy, "volatile-"):
			f.Advice = append(f.Advice, "maxmemory-policy "+policy+" logs users out when memory is short, as it does without a move; whom, nobody is told")
		}
		if used > most/10*9 {
			f.Advice = append(f.Advice, fmt.Sprintf("%d of %d bytes are used: raise maxmemory", used, most))
		}
	}
	if !durable {
		f.Advice = append(f.Advice, "a crash of this server loses its last writes, as it does without a move; and where it loses its mark with them, or all it had, nobody is served "+
			"before a person has decided: CONFIG SET appendonly yes for the time of the move")
	}
	if o.opt.Prefix == "" {
		f.Advice = append(f.Advice, fmt.Sprintf("every string in database %d is taken for a session: is there nothing else? Otherwise say prefix=", o.opt.Database))
	}
	return nil
}

// persistence says what the server keeps on its disk, and whether that is each write.
func (o *Origin) persistence(ctx context.Context, info map[string]string) (kept string, durable bool) {
	if info["aof_enabled"] == "1" {
		return "every write (appendonly yes)", true
	}
	replies, err := o.each(ctx, "check", "CONFIG", "GET", "save")
	save := "?"
	for _, r := range replies {
		if one := get(r, 0, (*rueidis.RedisMessage).AsStrMap)["save"]; one == "" || save == "?" {
			save = one // of a Cluster the worst one
		}
		err = cmp.Or(err, r.err)
	}
	switch {
	case err != nil:
		return "snapshots, perhaps (this user may not ask: +config|get); not every write (appendonly no)", false
	case save == "":
		return "nothing (appendonly no, save \"\")", false
	default:
		return "snapshots (save " + save + "), not every write (appendonly no)", false
	}
}

func (o *Origin) checkRights(ctx context.Context, f *store.Findings) error {
	session, mark := o.opt.Prefix+"sessile-check", o.homeMark()
	names := []string{"", " of " + o.opt.Prefix + "*", " of " + o.opt.Prefix + "*" + o.opt.LockSuffix, " of " + mark}
	inCluster := ""
	if o.cluster != nil {
		inCluster = "1"
	}
	replies, err := o.each(ctx, "check", "EVAL", rightsScript.text, "0", session, session+o.opt.LockSuffix, mark, inCluster)
	denied := map[int][]string{} // by key
	for _, r := range replies {
		r = r.script()
		for pair := range slices.Chunk(r.texts(1), 2) {
			if at, err := strconv.Atoi(pair[len(pair)-1]); err == nil && at < len(names) && !slices.Contains(denied[at], pair[0]) {
				denied[at] = append(denied[at], pair[0])
			}
		}
		err = cmp.Or(err, r.err)
	}
	if refused(err) {
		f.Against = append(f.Against, "this user may not run scripts: +eval +evalsha in its ACL")
		return nil
	}
	for _, at := range slices.Sorted(maps.Keys(denied)) {
		f.Against = append(f.Against, "this user lacks the right to "+strings.Join(denied[at], ", ")+names[at])
	}
	return err
}

// sampled is how many sessions are looked at, and sampledPages how many pages for them: others may be in the database, too.
const sampled, sampledPages = 1000, 100

// checkSample looks when sessions end.
func (o *Origin) checkSample(ctx context.Context, f *store.Findings) error {
	var left []time.Duration
	endless, cursor := 0, ""
	for range sampledPages {
		page, err := o.Scan(ctx, cursor, sampled)
		if err != nil {
			return err
		}
		all, err := o.Store.InspectAll(ctx, page.Keys[:min(len(page.Keys), sampled)])
		if err != nil {
			return err
		}
		for _, rec := range all {
			switch {
			case rec == nil: // it has just ended
			case rec.Expires.IsZero():
				endless++
			default:
				left = append(left, time.Until(rec.Expires).Round(time.Second))
			}
		}
		if cursor = page.Cursor; cursor == "" || len(left)+endless >= sampled {
			break
		}
	}
	if n := len(left); n > 0 {
		slices.Sort(left)
		f.Facts = append(f.Facts, fmt.Sprintf("deadlines: the first in %v, half of them within %v, the last in %v", left[0], left[n/2], left[n-1]))
	}
	if endless > 0 {
		then := "are not moved: say how long a session lives that nobody uses (lifetime)"
		if o.lifetime > 0 {
			then = fmt.Sprintf("get one, %v from when they are copied", o.lifetime)
		}
		f.Advice = append(f.Advice, fmt.Sprintf("%d of %d sampled sessions have no deadline, and %s", endless, len(left)+endless, then))
	}
	return nil
}

// auditEvery is how often the list of clients is asked for, which is long on a busy server.
const auditEvery = 500 * time.Millisecond

// What a client's last command may have done to a session.
var (
	writesStrings = words(`append bitfield bitop copy decr decrby del eval evalsha exec expire expireat fcall flushall flushdb getdel getex
		getset incr incrby incrbyfloat migrate move mset msetnx persist pexpire pexpireat psetex rename renamenx restore set setbit setex
		setnx setrange swapdb unlink`)
	readsStrings = words(`dump eval_ro evalsha_ro exists fcall_ro get getrange keys mget pttl scan strlen substr ttl type`)
)

func words(list string) map[string]bool {
	m := map[string]bool{}
	for _, w := range strings.Fields(list) {
		m[w] = true
	}
	return m
}

// Audit implements store.Auditor: it looks which other clients of this database do something, and what they did last. Redis
// does not tell with which keys, so under a prefix that is no evidence of anything.
func (o *Origin) Audit(ctx context.Context) (a store.Audit, err error) {
	began := time.Now()
	writers, readers := map[string]bool{}, map[string]bool{}
	look, cancel := context.WithTimeout(context.WithoutCancel(ctx), o.opt.Timeout) // at least once, however short the time
	defer cancel()
	for ; ; look = ctx {
		replies, err := o.each(look, "audit", "CLIENT", "LIST")
		for _, r := range replies {
			for line := range strings.Lines(r.text(0)) {
				o.audit(line, time.Since(began), writers, readers)
			}
			err = cmp.Or(err, r.err)
		}
		switch {
		case refused(err):
			a.Blind = "this user may not see other clients: +client|list in its ACL"
			return a, nil
		case ctx.Err() != nil:
			a.Writers, a.Readers = slices.Sorted(maps.Keys(writers)), slices.Sorted(maps.Keys(readers))
			if o.opt.Prefix != "" && len(a.Writers) > 0 {
				a.Blind = "others write in this database, and Redis does not tell whether that is sessions: " + strings.Join(a.Writers[:min(len(a.Writers), 5)], ", ")
				a.Writers = nil
			}
			return a, nil
		case err != nil:
			return a, err
		}
		select {
		case <-time.After(auditEvery):
		case <-ctx.Done():
		}
	}
}

// audit notes the client of a line of CLIENT LIST, if it is not one of ours and has done something since.
func (o *Origin) audit(line string, since time.Duration, writers, readers map[string]bool) {
	is := map[string]string{}
	for field := range strings.FieldsSeq(line) {
		name, value, _ := strings.Cut(field, "=")
		is[name] = value
	}
	idle, err := strconv.Atoi(is["idle"]) // counted by the server's second
	if err != nil || time.Duration(idle-1)*time.Second > since || is["name"] == "sessile" || is["db"] != strconv.Itoa(o.opt.Database) {
		return
	}
	host := is["addr"]
	if at := strings.LastIndexByte(host, ':'); at > 0 {
		host = host[:at]
	}
	who := is["user"] + " at " + host
	if is["name"] != "" {
		who += " (" + is["name"] + ")"
	}
	who += ": " + strings.ToUpper(is["cmd"])
	switch {
	case writesStrings[is["cmd"]]:
		writers[who] = true
	case readsStrings[is["cmd"]]:
		readers[who] = true
	}
}
