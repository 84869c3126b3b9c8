package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testserver"
)

var (
	faultRows = flag.String("rows", "", "the rows of the fault matrix to run: 1,4,6 (default all)")
	faultRuns = flag.Int("runs", 1, "runs of each row")
	faultKeep = flag.String("keep", "", "file for the results of all runs: what it has is not run again, and the table is of all that it has")
	faultOut  = flag.String("table", "", "file for the table, which goes to stdout besides")
)

var binary string // sessile

// TestFaults runs the fault matrix: each row breaks real servers under a load of three kinds of clients at the same time,
// mends them, and looks for everything that a client was told is there.
func TestFaults(t *testing.T) {
	var err error
	if binary, err = build(t.Context(), t.TempDir()); err != nil {
		t.Fatal(err)
	}
	all := readResults(t)
	for _, row := range matrix {
		if !row.chosen() {
			continue
		}
		had := 0
		for _, r := range all {
			if r.Row == row.id {
				had = max(had, r.Run)
			}
		}
		if had >= *faultRuns {
			continue
		}
		t.Run(row.id, func(t *testing.T) {
			b := row.bed(t)
			for n := had + 1; n <= *faultRuns; n++ {
				results := b.runOnce(row, n)
				all = append(all, results...)
				keepResults(t, results)
			}
			for _, f := range sum(row, all) {
				if f.ours() && !row.goal.met(f) {
					t.Errorf("row %s, %s: %s: not reached in %d runs", row.id, f.contestant, row.goal.text, f.runs)
				}
			}
		})
	}
	text := faultTable(all)
	fmt.Print(text)
	if *faultOut != "" {
		if err := os.WriteFile(*faultOut, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func (row *faultRow) chosen() bool {
	return *faultRows == "" || slices.ContainsFunc(strings.Split(*faultRows, ","), func(id string) bool {
		return row.id == id || strings.TrimRight(row.id, "abcdef") == id
	})
}

// A bed is what a row breaks, and who uses it meanwhile.
type bed struct {
	t         *testing.T
	run       *run // of the gateways
	sentinels *testserver.SentinelSet
	cluster   *testserver.ClusterSet
	url       string             // of the set
	addrs     []string           // whom clients ask first: Sentinels, or nodes
	places    []*testserver.Host // where the clients are; nil is this machine
	hosts     map[*testserver.RedisServer]*testserver.Host
	stranger  *testserver.RedisServer // a primary of its own
	news      *newsroom               // before one of the Sentinels
	gateways  []*contestant
}

// newBed makes what all beds have; the set comes after it, so that it ends before the gateways.
func newBed(t *testing.T) *bed {
	b := &bed{t: t, run: &run{ctx: t.Context(), began: time.Now(), dir: t.TempDir()}, places: []*testserver.Host{nil, nil}}
	b.run.sessile = binary
	return b
}

// A faultRun is one run of a row.
type faultRun struct {
	*bed
	row   *faultRow
	n     int // of the run, from 1
	loads []*traffic

	at      time.Time // the fault began
	elected time.Time // another server was the primary
	cut     int       // door of the clients who were cut off with the old primary, -1: none
	healed  time.Time
	hit     func(key string) bool // whom the fault concerns; nil: all
	seen    []*executed           // what servers did, where that is watched
}

// fault is called by a row when it begins to break something.
func (r *faultRun) fault() { r.at = time.Now() }

// lasts is how long a fault goes on.
func (r *faultRun) lasts(d time.Duration) { time.Sleep(d) }

// until waits for a condition, and not for ever: reports whether it came.
func (r *faultRun) until(limit time.Duration, condition func() bool) bool {
	for end := time.Now().Add(limit); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

// serving waits until every writer of every contestant has had a write acknowledged that was sent from now on, and reports
// whether that came. It does not wait for ever: who is not back by then has a pause that is at least as long.
func (r *faultRun) serving() bool {
	from := time.Now()
	return r.until(recovery, func() bool {
		for _, l := range r.loads {
			if !l.well(from) {
				return false
			}
		}
		return true
	})
}

const recovery = 10 * time.Second

// runOnce has the contestants write, breaks something, mends it, and looks for what they were told is there.
func (b *bed) runOnce(row *faultRow, n int) (results []faultResult) {
	r := &faultRun{bed: b, row: row, n: n, cut: -1}
	contestants := append(slices.Clone(b.gateways), b.goRedis(), b.rueidis())
	for _, c := range contestants {
		defer c.close()
		said := c.says(b.t)
		l := c.begin(fmt.Sprintf("%s-%d-%d", row.id, n, b.run.began.Unix()), b.cluster != nil)
		l.said = said
		r.loads = append(r.loads, l)
	}
	stop := sync.OnceFunc(func() {
		for _, l := range r.loads {
			close(l.stop)
		}
	})
	defer stop()
	if !r.serving() {
		b.t.Fatalf("row %s run %d: not everybody serves before anything is broken", row.id, n)
	}
	r.lasts(time.Second)
	row.fault(r)
	r.lasts(time.Second)
	over := time.Now()
	stop()
	wrote := make([][]session, len(r.loads))
	for i, l := range r.loads {
		wrote[i] = l.end()
	}
	b.whole()
	for _, e := range r.seen {
		e.stop()
	}
	for i, l := range r.loads {
		res := r.result(l, wrote[i], over)
		b.run.say("row %s run %d  %s", row.id, n, res)
		results = append(results, res)
	}
	return results
}

func (b *bed) whole() {
	if b.cluster != nil {
		b.cluster.WaitOK()
	} else {
		b.sentinels.WaitOK()
	}
}

// primaries are the servers that have the data now.
func (b *bed) primaries() []*testserver.RedisServer {
	if b.cluster != nil {
		return b.cluster.Primaries()
	}
	return []*testserver.RedisServer{b.sentinels.Primary()}
}

// there returns what of a run is in the servers.
func (b *bed) there(l *traffic) map[string]string {
	const script = "if ARGV[2] ~= '0' then redis.call('SELECT', ARGV[2]) end local r = {} for _, k in ipairs(redis.call('KEYS', ARGV[1])) do " +
		"if redis.call('TYPE', k).ok == 'string' then r[#r+1] = k r[#r+1] = redis.call('GET', k) end end return r"
	found := map[string]string{}
	for _, p := range b.primaries() {
		list := p.Do("EVAL", script, "0", l.prefix+":*", strconv.Itoa(l.db)).([]any)
		for i := 0; i+1 < len(list); i += 2 {
			found[list[i].(string)], _ = list[i+1].(string)
		}
	}
	return found
}

// A faultResult is what one contestant came to in one run.
type faultResult struct {
	Row, Contestant, Version string
	Run                      int
	Acknowledged             int
	Lost                     int     // acknowledged, not logged out, and not there
	Zombie                   int     // of them acknowledged when there was another primary already
	Undone                   int     // acknowledged logouts of sessions that are there
	Errors                   int     // answers that were errors, or none
	Done                     int     // writes among them that are there
	Repeated                 int     // writes that a server did more than once, where that was watched
	Crowd                    float64 // after that time 99 of 100 of a crowd were served, in seconds; 0: there was none
	CrowdFailed              int
	Memory                   float64 // what a gateway had at the most, in MiB
	Elected                  float64 // another server was the primary after that time, in seconds; 0: none
	Pause                    float64 // the longest time without an acknowledgement, in seconds
	Slowest                  float64 // the longest answer, in seconds
	Exposed                  float64 // for how long who was cut off was told that writes are done, in seconds
	ExposedWrites            int
	Says                     map[string]float64 `json:",omitempty"` // what the gateways counted meanwhile
	LastError                string
}

func (r faultResult) String() string {
	s := fmt.Sprintf("%-15s %5d acknowledged, %4d lost (%d zombies), %d undone, %4d errors (%d done), pause %.2f s, slowest %.2f s", r.Contestant,
		r.Acknowledged, r.Lost, r.Zombie, r.Undone, r.Errors, r.Done, r.Pause, r.Slowest)
	if r.Exposed > 0 {
		s += fmt.Sprintf(", exposed %.2f s, %d writes", r.Exposed, r.ExposedWrites)
	}
	if r.Crowd > 0 {
		s += fmt.Sprintf(", crowd %.2f s, %d not served", r.Crowd, r.CrowdFailed)
	}
	if r.Repeated > 0 {
		s += fmt.Sprintf(", %d repeated", r.Repeated)
	}
	if len(r.Says) > 0 {
		s += fmt.Sprintf(", says %v", r.Says)
	}
	if r.LastError != "" {
		s += ": " + r.LastError
	}
	return s
}

// replayTime is how long after all servers agree something may still come back.
const replayTime = 5 * time.Second

// result is what a contestant came to.
func (r *faultRun) result(l *traffic, wrote []session, over time.Time) faultResult {
	var lost, undone []session
	var res faultResult
	looked := func() bool {
		res, lost, undone = r.judge(wrote, r.there(l), over)
		return len(lost)+len(undone) == 0
	}
	if !looked() && l.procs != nil {
		r.until(replayTime, looked)
	}
	res.Row, res.Run, res.Version, res.Contestant = r.row.id, r.n, sessileVersion(), l.name
	res.Errors, res.Slowest = int(l.errs.Load()), time.Duration(l.slow.Load()).Seconds()
	if err := l.failed.Load(); err != nil {
		res.LastError = (*err).Error()
	}
	for name, n := range l.says(r.t) {
		if n -= l.said[name]; n > 0 {
			if res.Says == nil {
				res.Says = map[string]float64{}
			}
			res.Says[name] = n
		}
	}
	for _, p := range l.procs {
		res.Memory = max(res.Memory, p.memory("VmHWM"))
	}
	if n := len(l.rush); n > 0 {
		res.Crowd = l.rush[n*99/100].Seconds()
		for _, waited := range l.rush {
			if waited == patient {
				res.CrowdFailed++
			}
		}
	}
	if testing.Verbose() && res.Lost+res.Undone > 0 && l.procs != nil {
		r.explain(l, lost, undone)
	}
	return res
}

// judge says what became of what was written, by what is there in the end.
func (r *faultRun) judge(wrote []session, there map[string]string, over time.Time) (res faultResult, lost, undone []session) {
	if !r.elected.IsZero() {
		res.Elected = r.elected.Sub(r.at).Seconds()
	}
	acks := map[int][]time.Time{} // by door
	for _, s := range wrote {
		found, is := there[s.key]
		switch {
		case s.err != nil:
			if is {
				res.Done++
			}
			continue
		case s.logout == acknowledged && is:
			res.Undone++
			undone = append(undone, s)
		case s.logout == notAsked && found != valueOf(s.key):
			res.Lost++
			lost = append(lost, s)
			if !r.elected.IsZero() && s.done.After(r.elected) {
				res.Zombie++
			}
		}
		res.Acknowledged++
		if r.repeated(s.key) {
			res.Repeated++
		}
		if acks[s.door] == nil {
			acks[s.door] = []time.Time{r.at, over}
		}
		if s.done.After(r.at) && (r.hit == nil || r.hit(s.key)) {
			acks[s.door] = append(acks[s.door], s.done)
		}
		if s.door == r.cut && s.done.After(r.at) && s.done.Before(r.healed) {
			res.ExposedWrites++
			res.Exposed = max(res.Exposed, s.done.Sub(r.at).Seconds())
		}
	}
	for door, list := range acks {
		if door == r.cut {
			continue
		}
		slices.SortFunc(list, time.Time.Compare)
		for i, at := range list[1:] {
			res.Pause = max(res.Pause, at.Sub(list[i]).Seconds())
		}
	}
	return res, lost, undone
}

// explain shows what Sessile's gateways said, and what of their clients' is lost.
func (r *faultRun) explain(l *traffic, lost, undone []session) {
	since := func(t time.Time) string {
		if t.IsZero() {
			return "never"
		}
		return fmt.Sprintf("%+.3f s", t.Sub(r.at).Seconds())
	}
	for _, s := range lost[:min(5, len(lost))] {
		r.t.Logf("lost: %s by door %d, sent %s, acknowledged %s", s.key, s.door, since(s.sent), since(s.done))
	}
	for _, s := range undone[:min(5, len(undone))] {
		r.t.Logf("undone: %s by door %d, sent %s, acknowledged %s, logout %s", s.key, s.door, since(s.sent), since(s.done), since(s.gone))
	}
	r.t.Logf("the fault began %s, another primary since %s", r.at.Format("15:04:05.000"), since(r.elected))
	for i, p := range l.procs {
		text, _ := os.ReadFile(p.log)
		var since strings.Builder
		for line := range strings.Lines(string(text)) {
			if at, _, _ := strings.Cut(strings.TrimPrefix(line, "time="), " "); at >= r.at.UTC().Format("2006-01-02T15:04:05.000Z") {
				since.WriteString(line)
			}
		}
		r.t.Logf("gateway %d:\n%s", i, &since)
	}
}

// readResults reads what earlier runs came to.
func readResults(t *testing.T) (all []faultResult) {
	if *faultKeep == "" {
		return nil
	}
	b, err := os.ReadFile(*faultKeep)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for line := range bytes.Lines(b) {
		var r faultResult
		if err := json.Unmarshal(line, &r); err != nil {
			t.Fatalf("%s: %v", *faultKeep, err)
		}
		all = append(all, r)
	}
	return all
}

func keepResults(t *testing.T, results []faultResult) {
	if *faultKeep == "" {
		return
	}
	f, err := os.OpenFile(*faultKeep, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var lines bytes.Buffer
	for _, r := range results {
		if err := json.NewEncoder(&lines).Encode(r); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.Write(lines.Bytes()); err != nil {
		t.Fatal(err)
	}
}
