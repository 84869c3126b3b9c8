package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sessile/sessile/internal/resp"
	"github.com/sessile/sessile/migrate"
)

const (
	pageSessions = 10_000
	pageBytes    = 4096
	editRows     = 200_000
	tableLife    = "345600" // seconds; RT's table says no lifetime
	lockTries    = 100      // redis.session.lock_retries
)

// A crowd is how many users ask for pages, one at a time each, and how long they look at one.
type crowd struct {
	users int
	think time.Duration
}

var crowds = []crowd{{1, 0}, {64, 0}, {300, 0}, {300, 500 * time.Millisecond}}

func (c crowd) String() string {
	if c.think == 0 {
		return fmt.Sprint(c.users)
	}
	return fmt.Sprintf("%d, thinking", c.users)
}

// A view is a page that finds its session, counts a visit in it and writes it back, as one application does it with one store.
type view func(ctx context.Context, id string, change func(found []byte) ([]byte, error)) error

// A keeper is where an application keeps its sessions.
type keeper struct {
	name  string
	text  bool                                    // Base64 of the session, as RT has it in Redis
	open  func(users int) ([]view, func(), error) // what each user's process has, and the end of it
	after *proc                                   // has work to do behind the last page's back
	pages []view

	visits []int64 // of each session, which is one user's; -1: not known, since a page failed

	mu     sync.Mutex // guards what follows
	failed error      // the first page that failed
	lost   int        // pages that did not find what the one before had left
}

// sessionBytes are a session: the first line of its Base64, in lines of 76, says whose it is and how often it was seen.
func sessionBytes(id string, visits int64, text bool) []byte {
	head := fmt.Appendf(nil, "\x05\x0b%s%023d", id, visits) // Storable begins like this
	if text {
		return append(append(base64.StdEncoding.AppendEncode(nil, head), '\n'), padText...)
	}
	return append(head, pad...)
}

// readSession is the way back.
func readSession(b []byte, id string, text bool) (visits int64, err error) {
	head, rest, want := b, []byte(nil), pad
	if text {
		var first []byte
		first, rest, _ = bytes.Cut(b, []byte("\n"))
		if head, err = base64.StdEncoding.AppendDecode(nil, first); err != nil {
			return 0, err
		}
		want = padText
	} else if len(b) > headBytes {
		head, rest = b[:headBytes], b[headBytes:]
	}
	if len(head) != headBytes || string(head[2:34]) != id || !bytes.Equal(rest, want) {
		return 0, fmt.Errorf("%d bytes that are not the session's", len(b))
	}
	_, err = fmt.Sscanf(string(head[34:]), "%d", &visits)
	return visits, err
}

const headBytes = 57 // a line of Base64

// pad is what is in a session besides: nothing that compresses, and every byte there is.
var pad, padText = func() (pad, text []byte) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range pageBytes - headBytes {
		pad = append(pad, byte(rng.Uint32()))
	}
	for line := range slices.Chunk(pad, headBytes) {
		text = append(base64.StdEncoding.AppendEncode(text, line), '\n')
	}
	return pad, text
}()

func sessionID(i int) string { return fmt.Sprintf("%032x", i*7919) }

func (r *run) page() error {
	install, server := find("mariadb-install-db"), find("mariadbd")
	if install == "" || server == "" {
		fmt.Print("\n### A page view\n\nLeft out, since it is not on this machine: mariadb-server (`apt-get install --no-install-recommends mariadb-server`).\n")
		return nil
	}
	db, err := r.mariadb(install, server)
	if err != nil {
		return err
	}
	defer db.Close()
	r.say("making %d sessions in %d tables, and a table of something else", r.scaled(pageSessions), int(migrate.Complete)+2)
	keepers, locked, err := r.keepers(db)
	if err != nil {
		return err
	}
	edits, err := db.edits(r.ctx, r.scaled(editRows))
	if err != nil {
		return err
	}
	quiet, busy := make([][]series, len(crowds)), make([][]series, len(crowds))
	all := append(slices.Clone(keepers), locked...)
	for i, c := range crowds {
		rows := all
		if c.think > 0 {
			rows = keepers
		}
		if quiet[i], err = r.turns(fmt.Sprint("users ", c), rows, c, 1); err != nil {
			return err
		}
	}
	stop := edits.run(r.ctx)
	for i, c := range crowds {
		if busy[i], err = r.turns(fmt.Sprint("edit, users ", c), keepers, c, 4); err != nil {
			return errors.Join(err, stop())
		}
	}
	if err := stop(); err != nil {
		return err
	}
	durable, err := r.fsync()
	if err != nil {
		return err
	}
	fmt.Printf("\n### A page view\n\nWhat the sessions of a page cost: %d sessions of %d bytes, each user's own, taken uniformly; a page reads its session, counts a "+
		"visit and writes it back, and is checked to find what the one before left. Each user has a connection, which is kept. MySQL: MariaDB with durable "+
		"commits, RT's table, `GET_LOCK`, `SELECT`, `UPDATE`, `RELEASE_LOCK`. Files: open, `flock`, read, write. Redis: `GET`, `SET`, of Base64 as RT has it "+
		"there. Gateway: the same, `--origin 'mysql://...?preset=rt'`, with a table, a gateway and a Redis for each phase. Thinking: %v from one page to the "+
		"next; the others ask again at once. Times in ms; a page that failed counts as one that never came. Every row runs in turns of %v. A durable write takes %.2f ms here "+
		"(4 KiB and `fsync`). Edit: meanwhile, in another table of the same MariaDB (%d rows of 1 KB), over and over: %s.\n",
		r.scaled(pageSessions), pageBytes, crowds[len(crowds)-1].think, r.turn(), durable, r.scaled(editRows), edits)
	pageTables(keepers, locked, quiet, busy)
	lost := 0
	for _, k := range all {
		if lost += k.lost; k.failed != nil {
			fmt.Printf("The first page that failed with %s (%d did not find what the one before had left): %v.\n\n", k.name, k.lost, k.failed)
		}
	}
	if lost == 0 {
		fmt.Print("Every page found what the one before had left.\n\n")
	}
	return nil
}

// pageTables prints what was measured, by crowd and then keeper; those with the lock come behind those without.
func pageTables(keepers, locked []*keeper, quiet, busy [][]series) {
	head := []string{"sessions in", "users", "p50", "p99", "pages/s", "errors", "p50 to MySQL", "edit: p50", "p99", "pages/s", "errors", "p50 to MySQL"}
	rows, lockRows := [][]string{head}, [][]string{append(slices.Clone(head[:6]), "p50 to the same without")}
	for i, c := range crowds {
		for row, k := range keepers {
			cells := append([]string{k.name, c.String()}, append(pageCells(quiet[i][row]), quiet[i][row].share(quiet[i][0], 0))...)
			rows = append(rows, append(append(cells, pageCells(busy[i][row])...), busy[i][row].share(busy[i][0], 0)))
		}
		for row, s := range quiet[i][len(keepers):] {
			cells := append([]string{locked[row].name, c.String()}, pageCells(s)...)
			lockRows = append(lockRows, append(cells, s.share(quiet[i][len(keepers)-len(locked)+row], 0)))
		}
	}
	table(rows)
	fmt.Print("With the lock as phpredis takes it around both (`SET id_LOCK token NX PX`, and its script), `SETEX` for `SET`, and no edit:\n")
	table(lockRows)
}

// pageCells are median, 99th percentile, pages per second; and errors, of all rounds.
func pageCells(s series) []string {
	errs := 0.0
	for _, round := range s {
		errs += round[3]
	}
	return append(s.cells("%.3f", "%.3f", "%.0f"), fmt.Sprintf("%.0f", errs))
}

func (r *run) turn() time.Duration { return time.Duration(r.scaled(750)) * time.Millisecond }

// fsync is how long a durable write takes where MariaDB has its files, in ms.
func (r *run) fsync() (float64, error) {
	f, err := os.Create(filepath.Join(r.dir, "fsync"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var took []float64
	for range 50 {
		start := time.Now()
		if _, err := f.Write(pad); err != nil {
			return 0, err
		}
		if err := f.Sync(); err != nil {
			return 0, err
		}
		took = append(took, time.Since(start).Seconds()*1000)
	}
	return summary(took)[1], nil
}

// turns measures keepers under a load. A round is so many turns of each, in an order that rotates, so that each meets
// every part of an edit. It returns median and 99th percentile in ms, pages per second and how many failed.
func (r *run) turns(what string, keepers []*keeper, c crowd, turns int) ([]series, error) {
	for _, k := range keepers {
		pages, end, err := k.open(c.users)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", k.name, err)
		}
		defer end()
		k.pages = pages
	}
	all := make([]series, len(keepers))
	for round := range r.rounds {
		times, took := make([][]float64, len(keepers)), make([]time.Duration, len(keepers))
		for turn := range turns {
			for i := range keepers {
				row := (round*turns + turn + i) % len(keepers)
				t, d := keepers[row].browse(r.ctx, c, r.turn())
				times[row], took[row] = append(times[row], t...), took[row]+d+keepers[row].settle()
				if r.ctx.Err() != nil {
					return nil, r.ctx.Err()
				}
			}
		}
		for row, k := range keepers {
			if len(times[row]) == 0 {
				return nil, fmt.Errorf("%s: no page in %v", k.name, took[row])
			}
			s := summary(times[row])
			failed := 0.0
			for _, t := range times[row] {
				if math.IsInf(t, 1) {
					failed++
				}
			}
			values := append(s[1:], (float64(len(times[row]))-failed)/took[row].Seconds(), failed)
			r.say("round %d  %s  %-28s %.4g", round+1, what, k.name, values)
			all[row] = append(all[row], values)
		}
	}
	return all, nil
}

// browse has users ask for pages for d. It returns what each page's session took, in ms, and how long it took in all.
func (k *keeper) browse(ctx context.Context, c crowd, d time.Duration) ([]float64, time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, d+30*time.Second)
	defer cancel()
	times := make([][]float64, c.users)
	var wg sync.WaitGroup
	began := time.Now()
	for user, show := range k.pages {
		wg.Go(func() {
			for wait := rand.N(c.think + 1); time.Since(began)+wait < d && ctx.Err() == nil; wait = c.think {
				time.Sleep(wait)
				mine := rand.IntN(len(k.visits)/c.users)*c.users + user
				start := time.Now()
				err := k.visit(ctx, show, mine)
				t := float64(time.Since(start).Nanoseconds()) / 1e6
				if err != nil {
					t = math.Inf(1)
				}
				times[user] = append(times[user], t)
			}
		})
	}
	wg.Wait()
	return slices.Concat(times...), max(d, time.Since(began))
}

func (k *keeper) visit(ctx context.Context, show view, i int) error {
	id, visits := sessionID(i), k.visits[i]
	err := show(ctx, id, func(found []byte) ([]byte, error) {
		n, err := readSession(found, id, k.text)
		if visits >= 0 && (err != nil || n != visits) {
			k.mu.Lock()
			k.lost++
			k.mu.Unlock()
			if err == nil {
				err = fmt.Errorf("a session counts %d visits and had %d", n, visits)
			}
		}
		visits = n + 1
		return sessionBytes(id, n+1, k.text), err
	})
	if k.visits[i] = visits; err != nil {
		k.visits[i] = -1
		k.mu.Lock()
		if k.failed == nil {
			k.failed = err
		}
		k.mu.Unlock()
	}
	return err
}

// settle waits until nothing is done any more for pages that have been answered: the copies of dual-write, and what
// ramp-down owes the table. The next row is not to pay for them. It returns how long they took.
func (k *keeper) settle() time.Duration {
	const pause = 100 * time.Millisecond
	began := time.Now()
	for k.after != nil && time.Since(began) < 30*time.Second {
		asked, before := time.Since(began), k.after.cpu()
		time.Sleep(pause)
		if k.after.cpu()-before <= pause/5 {
			return asked
		}
	}
	return time.Since(began)
}

// keepers makes the sessions and takes the gateways to their phases. The last keepers are Redis and the gateways, in the
// order of those with the lock.
func (r *run) keepers(db *mariadb) (keepers, locked []*keeper, err error) {
	n := r.scaled(pageSessions)
	if err := db.sessions(r.ctx, "rt", n); err != nil {
		return nil, nil, err
	}
	dir := filepath.Join(r.dir, "pages")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, nil, err
	}
	for i := range n {
		id := sessionID(i)
		if err := os.WriteFile(filepath.Join(dir, "sess_"+id), sessionBytes(id, 0, false), 0o600); err != nil {
			return nil, nil, err
		}
	}
	direct, err := r.redis()
	if err != nil {
		return nil, nil, err
	}
	if err := fillPages(direct, n); err != nil {
		return nil, nil, err
	}
	keepers = []*keeper{{name: "MySQL", open: db.pages}, {name: "files", open: filePages(dir)}}
	inRedis := func(name, addr string, after *proc) {
		visits := make([]int64, n)
		keepers = append(keepers, &keeper{name: name, text: true, open: redisPages(addr, false), after: after, visits: visits})
		locked = append(locked, &keeper{name: name, text: true, open: redisPages(addr, true), after: after, visits: visits})
	}
	inRedis("Redis, direct", direct.addr, nil)
	steps := make([]error, migrate.Complete+1)
	var wg sync.WaitGroup
	for p := migrate.Off; p <= migrate.Complete; p++ {
		name := "rt_" + strings.ReplaceAll(p.String(), "-", "_")
		if err := db.sessions(r.ctx, name, n); err != nil {
			return nil, nil, err
		}
		redis, err := r.redis()
		if err != nil {
			return nil, nil, err
		}
		// As docs/requesttracker.md has it.
		g, err := r.serve("--target=redis://"+redis.addr, "--origin=mysql://root@"+db.addr+"/"+name+"?preset=rt&lifetime="+tableLife+"s", "--lifetime="+tableLife+"s", "--sliding")
		if err != nil {
			return nil, nil, err
		}
		var after *proc
		if p == migrate.DualWrite || p == migrate.RampDown {
			after = g.proc
		}
		inRedis("gateway, "+p.String(), g.addr, after)
		wg.Go(func() { steps[p] = g.take(p) })
	}
	r.say("taking the gateways to their phases")
	wg.Wait()
	for _, k := range keepers[:2] {
		k.visits = make([]int64, n)
	}
	return keepers, locked, errors.Join(steps...)
}

// filePages are PHP's: the file is locked for as long as the page has it open.
func filePages(dir string) func(users int) ([]view, func(), error) {
	show := func(_ context.Context, id string, change func([]byte) ([]byte, error)) error {
		f, err := os.OpenFile(filepath.Join(dir, "sess_"+id), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
			return err
		}
		found := make([]byte, 2*pageBytes)
		size, err := f.Read(found)
		if err != nil {
			return err
		}
		b, err := change(found[:size])
		if err == nil {
			_, err = f.WriteAt(b, 0)
		}
		return err
	}
	return func(users int) ([]view, func(), error) { return slices.Repeat([]view{show}, users), func() {}, nil }
}

// releaseLock is phpredis' script.
const releaseLock = `if redis.call("get",KEYS[1]) == ARGV[1] then return redis.call("del",KEYS[1]) else return 0 end`

// redisPages are those of Apache::Session::Redis, which takes no lock; or with the lock of phpredis.
func redisPages(addr string, lock bool) func(users int) ([]view, func(), error) {
	return func(users int) (pages []view, end func(), err error) {
		clients := make([]*redisClient, users)
		for i := range clients {
			c := &redisClient{addr: addr}
			clients[i] = c
			if !lock {
				pages = append(pages, func(_ context.Context, id string, change func([]byte) ([]byte, error)) error {
					return c.change(id, change, "SET", id)
				})
				continue
			}
			token := fmt.Sprint("bench|", i)
			pages = append(pages, func(_ context.Context, id string, change func([]byte) ([]byte, error)) error {
				if err := c.lock(id+"_LOCK", token); err != nil {
					return err
				}
				err := c.change(id, change, "SETEX", id, tableLife)
				v, uerr := c.do("EVAL", releaseLock, "1", id+"_LOCK", token)
				if uerr == nil && v.Int != 1 {
					uerr = errors.New("the lock was lost")
				}
				return errors.Join(err, uerr)
			})
		}
		end = func() {
			for _, c := range clients {
				c.close()
			}
		}
		for _, c := range clients {
			if _, err := c.do("PING"); err != nil {
				end()
				return nil, nil, err
			}
		}
		return pages, end, nil
	}
}

// redisClient is an application's connection, with one command at a time. It is made anew after an error.
type redisClient struct {
	addr string
	conn net.Conn
	buf  []byte
}

func (c *redisClient) close() {
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}

// do returns an answer that is good until the next.
func (c *redisClient) do(args ...string) (resp.Value, error) {
	v, err := c.ask(resp.AppendRequestStrings(nil, args...))
	if err != nil {
		c.close()
		return v, err
	}
	if v.Kind == resp.Error {
		return v, fmt.Errorf("%s: %s", args[0], v.Str)
	}
	return v, nil
}

func (c *redisClient) ask(request []byte) (v resp.Value, err error) {
	if c.conn == nil {
		if c.conn, err = net.Dial("tcp", c.addr); err != nil {
			return v, err
		}
		c.buf = make([]byte, 4*pageBytes)
	}
	if err := c.conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return v, err
	}
	if _, err := c.conn.Write(request); err != nil {
		return v, err
	}
	for have := 0; ; {
		n, err := c.conn.Read(c.buf[have:])
		if err != nil {
			return v, err
		}
		have += n
		v, n, _, err := resp.ParseReply(c.buf[:have], resp.ReplyLimits{Bulk: 2 * pageBytes})
		if n > 0 || err != nil {
			return v, err
		}
	}
}

// change reads a session and writes it back; write is the command, and what it has before the session.
func (c *redisClient) change(id string, change func([]byte) ([]byte, error), write ...string) error {
	v, err := c.do("GET", id)
	if err != nil {
		return err
	}
	b, err := change(v.Str)
	if err != nil {
		return err
	}
	if v, err = c.do(append(write, string(b))...); err == nil && string(v.Str) != "OK" {
		err = fmt.Errorf("%s is answered %q", write[0], v.Str)
	}
	return err
}

// lock asks for a lock as often as phpredis does.
func (c *redisClient) lock(key, token string) error {
	for range lockTries {
		v, err := c.do("SET", key, token, "NX", "PX", "30000")
		if err != nil || !v.Null {
			return err
		}
		time.Sleep(20 * time.Millisecond) // redis.session.lock_wait_time
	}
	return errors.New("the lock is held by somebody else")
}

// fillPages writes sessions into Redis.
func fillPages(redis *server, n int) error {
	c, err := net.Dial("unix", redis.socket)
	if err != nil {
		return err
	}
	defer c.Close()
	for from := 0; from < n; from += 100 {
		var b []byte
		for i := from; i < from+100; i++ {
			b = resp.AppendRequest(b, []byte("SET"), []byte(sessionID(i)), sessionBytes(sessionID(i), 0, true))
		}
		if err := exchange(c, b, 100); err != nil {
			return err
		}
	}
	return nil
}
