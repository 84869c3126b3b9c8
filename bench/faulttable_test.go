package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
)

// sum adds up what the runs of a row came to, by contestant.
func sum(row *faultRow, all []faultResult) (list []figures) {
	var names []string
	for _, r := range all {
		if r.Row == row.id && !slices.Contains(names, r.Contestant) {
			names = append(names, r.Contestant)
		}
	}
	for _, name := range names {
		f := figures{contestant: name, says: map[string]float64{}}
		var pauses, slowest, elected []float64
		for _, r := range all {
			if r.Row != row.id || r.Contestant != name {
				continue
			}
			f.runs++
			f.acknowledged += r.Acknowledged
			f.lost += r.Lost
			f.worst = max(f.worst, r.Lost)
			f.zombies += r.Zombie
			f.undone += r.Undone
			f.errors += r.Errors
			f.done += r.Done
			for name, n := range r.Says {
				f.says[name] += n
			}
			f.crowd, f.crowdFailed = max(f.crowd, r.Crowd), f.crowdFailed+r.CrowdFailed
			f.repeated += r.Repeated
			f.memory = max(f.memory, r.Memory)
			f.exposedWrites += r.ExposedWrites
			f.exposedWorst = max(f.exposedWorst, r.Exposed)
			pauses, slowest = append(pauses, r.Pause), append(slowest, r.Slowest)
			if r.Elected > 0 {
				elected = append(elected, r.Elected)
				f.backMax = max(f.backMax, r.Pause-r.Elected)
			}
		}
		f.elected, _ = midMax(elected)
		f.pauseMid, f.pauseMax = midMax(pauses)
		f.slowestMid, f.slowestMax = midMax(slowest)
		list = append(list, f)
	}
	return list
}

// midMax are median and maximum; it sorts values.
func midMax(values []float64) (mid, most float64) {
	if len(values) == 0 {
		return 0, 0
	}
	slices.Sort(values)
	n := len(values)
	return (values[(n-1)/2] + values[n/2]) / 2, values[n-1]
}

const aboutFaults = `# When Redis fails

What becomes of sessions when Redis, its Sentinels, its Cluster or the network fail under load: Sessile side by side with what one
would use instead, go-redis and rueidis with their defaults, all at the same time on the same servers. ~make faults~ makes this page.

* **The load**, the same of each: 16 clients, 300 writes a second together, every write a login under a new key; one session in
  eight is logged out again. Sessile's clients are plain connections that know one Redis, as PHP's are, to one of two gateways;
  go-redis and rueidis have two clients. Half of the clients are at one place, half at the other.
* **A run**: everybody writes for a second, something breaks and is mended, everybody who can writes for another second; then all
  servers agree, and every key that a client was told of is looked up on the primaries.
* **The servers**: Debian's Redis, a primary with two replicas and three Sentinels (down-after 1 s, failover-timeout 6 s), or a
  Cluster of three primaries with a replica each (node-timeout 2 s), without persistence if not said otherwise. Where cables are cut, each
  server, gateway and client is on a host of its own (network namespaces).
* Each has a database of its own, but in a Cluster. go-redis and rueidis begin each run with new clients; the gateways go on from
  run to run, as they do in life.

**Lost**: acknowledged, not logged out, and not there. **Zombies**: those of them that were acknowledged when there was another primary
already. **Pause**: the longest time in a run in which the clients of one place were told of no write that is done; who never comes back has
it to the end of the run. **Errors**: answers that were errors, or none within 15 s; **done**: writes among them that are there in the end.
**Exposed**: for how long who was cut off together with the old primary was told that writes are done. **Slowest answer**: of a run.

~sessile strict~ is ~safety=strict&lease=500ms~; ~sessile critical=none~ is ~--critical=none~: no write waits for the replicas.

`

const elsewhere = `
Rows of the matrix that are deterministic tests:

| row | fault | test |
| --- | --- | --- |
| 11, 12 | Sentinels that lie, are late, announce what does not come, refuse | ~TestWhichServerIsThePrimary~, ~TestAnnouncements~, ~TestSentinelsThatRefuse~ (~store/redis~) |
| 18 | every error reply, and what it means | ~TestReplies~ (~store/redis~), ~TestStoreThatRefuses~ (~internal/gateway~) |
| 19 | a primary that comes back old, and one that comes back empty while nobody is there | ~TestAServerThatIsOlder~, ~TestTheGuardOfAnIdleSite~ (~store/redis~) |
| 21 | memory that evicts | ~sessile doctor~ says so: ~TestJudge~ (~internal/doctor~); and while it happens: ~TestEvictionIsNoticed~ (~store/redis~) |
| 22 | no memory left: reads and logouts go on | ~TestOutOfMemory~ (~store/redis~) |
| 27 | a server that stands still | ~TestManyCallersOnAStalledServerKeepTheirDeadlines~, ~TestAStallThatEndsDoesNotCostTheConnection~ (~store/redis~), ~TestStoreThatIsSilent~ (~internal/gateway~) |
| 28 | bytes one by one | ~TestAnyChunking~ (~internal/gateway~), ~TestFraming~ (~store/redis~) |
| 29 | the connection breaks at any byte | ~TestStoreThatDiesAtAnyByte~ (~internal/gateway~), ~TestNoAnswer~ (~store/redis~) |
| 30 | connection refused, an address that moves | ~TestServerAway~, ~TestAnAddressThatMoves~ (~store/redis~) |
`

// faultTable is the report, in Markdown.
func faultTable(all []faultResult) string {
	var b strings.Builder
	var seen []string
	for _, r := range all {
		if !slices.Contains(seen, r.Version) {
			seen = append(seen, r.Version)
		}
	}
	fmt.Fprintf(&b, "%s%s. %s; %s; %s.\n\n", quoted(aboutFaults), time.Now().Format("2006-01-02"), machine(), peerVersions(), strings.Join(seen, ", "))
	head := []string{"row", "fault", "client", "runs", "acknowledged", "lost (worst run)", "zombies", "logouts undone", "new primary after", "pause p50 / max",
		"errors (done)", "slowest answer p50 / max", "besides", "goal"}
	fmt.Fprintf(&b, "| %s |\n|%s\n", strings.Join(head, " | "), strings.Repeat(" --- |", len(head)))
	for _, row := range matrix {
		id, what := row.id, row.what
		for _, f := range sum(row, all) {
			cells := []string{id, what, f.contestant, fmt.Sprint(f.runs), fmt.Sprint(f.acknowledged), fmt.Sprintf("%d (%d)", f.lost, f.worst), fmt.Sprint(f.zombies),
				fmt.Sprint(f.undone), "", fmt.Sprintf("%.2f / %.2f s", f.pauseMid, f.pauseMax), fmt.Sprintf("%d (%d)", f.errors, f.done),
				fmt.Sprintf("%.2f / %.2f s", f.slowestMid, f.slowestMax), f.besides(), ""}
			if f.elected > 0 {
				cells[8] = fmt.Sprintf("%.2f s", f.elected)
			}
			if f.ours() {
				cells[13] = row.goal.text + ": " + map[bool]string{true: "yes", false: "**no**"}[row.goal.met(f)]
			}
			fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | "))
			id, what = "", ""
		}
	}
	b.WriteString(quoted(elsewhere))
	return b.String()
}

// quoted writes code, which a raw string cannot hold.
func quoted(text string) string { return strings.ReplaceAll(text, "~", "`") }

func (f figures) ours() bool { return strings.HasPrefix(f.contestant, "sessile") }

// besides is what only some rows have.
func (f figures) besides() string {
	var notes []string
	if f.exposedWrites > 0 {
		notes = append(notes, fmt.Sprintf("exposed %.2f s, %d writes", f.exposedWorst, f.exposedWrites))
	}
	if f.repeated > 0 {
		notes = append(notes, fmt.Sprintf("%d writes done twice", f.repeated))
	}
	if f.crowd > 0 {
		notes = append(notes, fmt.Sprintf("99 %% of them served within %.2f s, %d never", f.crowd, f.crowdFailed))
	}
	for _, count := range []struct{ name, text string }{{"put_back", "put back %.0f"}, {"lost", "says that %.0f are lost"}, {"exposed", "that %.0f were exposed"},
		{"shortfalls", "that %.0f were not with all replicas in time"}, {"unknown", "that it had no answer for %.0f"}, {"resolved", "and %.0f of them were done"}} {
		if n := f.says[count.name]; n > 0 {
			notes = append(notes, fmt.Sprintf(count.text, n))
		}
	}
	if f.memory > 0 {
		notes = append(notes, fmt.Sprintf("%.0f MiB", f.memory))
	}
	return strings.Join(notes, "; ")
}

// peerVersions says which versions there are of what Sessile is compared with.
func peerVersions() string {
	all := []string{version("redis-server", "--version"), "go-redis " + goredis.Version(), "rueidis " + rueidis.LibVer}
	return strings.Join(all, ", ")
}
