package cassandra

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	gocql "github.com/apache/cassandra-gocql-driver/v2"

	"github.com/sessile/sessile/store"
)

// Check implements store.Checker.
func (s *Store) Check(ctx context.Context) (store.Findings, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*s.opt.Bound)
	defer cancel()
	c, err := s.cluster(ctx)
	if err != nil {
		return store.Findings{}, err
	}
	o := &s.opt
	deadline := "the deadline is the TTL of " + o.Data
	if o.Expires != "" {
		deadline = fmt.Sprintf("the deadline is in %s %s", o.Expires, c.expires)
	}
	f := store.Findings{
		Facts: []string{fmt.Sprintf("table %s.%s: %s %s, %s %s; %s; reads and writes at %s, transactions at %s",
			o.Keyspace, o.Table, o.ID, c.id, o.Data, c.data, deadline, o.Consistency, o.Serial)},
		Require: []string{
			"all gateways name one datacenter, and application servers that still use Cassandra themselves write there, with a quorum",
			"the clocks of all nodes and of those application servers agree: beside a transaction of the gateway's, a plain write whose clock is behind is lost, as beside another plain write; one whose clock is ahead is waited for",
		},
		Advice: []string{
			"Cassandra compares the seal and writes in two steps, and may execute late what lay in the socket of a node that stood still: what is written is bound to the data that " +
				"it replaces, so a write that is late changes nothing that has changed since; only one that made a session where there was none can be late",
			"applications that keep sessions in Cassandra take no locks; those of the gateway exclude each other alone",
		},
	}
	for _, look := range []func(context.Context, *store.Findings) error{c.checkCluster, c.checkTable, c.checkSettings, c.checkRights, s.checkSample} {
		if err := look(ctx, &f); err != nil {
			return f, err
		}
	}
	return f, nil
}

func (c *cluster) checkCluster(ctx context.Context, f *store.Findings) error {
	var version, cluster string
	var now int64
	if err := c.ask(ctx, "SELECT release_version, cluster_name, toUnixTimestamp(now()) FROM system.local").ScanContext(ctx, &version, &cluster, &now); err != nil {
		return failure(ctx, "check", err)
	}
	centers, err := c.datacenters(ctx)
	if err != nil {
		return err
	}
	var replication map[string]string
	if err := c.ask(ctx, "SELECT replication FROM system_schema.keyspaces WHERE keyspace_name = ?", c.opt.Keyspace).ScanContext(ctx, &replication); err != nil {
		return failure(ctx, "check", err)
	}
	class := replication["class"][strings.LastIndexByte(replication["class"], '.')+1:]
	delete(replication, "class")
	var copies []string
	for _, where := range slices.Sorted(maps.Keys(replication)) {
		copies = append(copies, where+" "+replication[where])
		if n, err := strconv.Atoi(replication[where]); err == nil && n < 3 && (where == "replication_factor" || c.opt.Datacenter == "" || where == c.opt.Datacenter) {
			f.Advice = append(f.Advice, fmt.Sprintf("%d copies of each session (%s): while one of their nodes is away, nobody whose session is there is served", n, where))
		}
	}
	f.Facts = append(f.Facts, fmt.Sprintf("Cassandra %s, cluster %q, datacenters %s; %s with %s", version, cluster, strings.Join(centers, ", "), class, strings.Join(copies, ", ")))
	if major, _, _ := strings.Cut(version, "."); major < "4" && len(major) == 1 {
		f.Against = append(f.Against, fmt.Sprintf("Cassandra %s answers serial reads that do not end what was begun (CASSANDRA-12126): 4.0 or later is needed", version))
	}
	if off := time.Until(time.UnixMilli(now)); off.Abs() > time.Second {
		f.Advice = append(f.Advice, fmt.Sprintf("the clock of a node is %v from ours", off.Round(100*time.Millisecond)))
	}
	return nil
}

func (c *cluster) checkTable(ctx context.Context, f *store.Findings) error {
	var life, grace int
	if err := c.ask(ctx, "SELECT default_time_to_live, gc_grace_seconds FROM system_schema.tables WHERE keyspace_name = ? AND table_name = ?",
		c.opt.Keyspace, c.opt.Table).ScanContext(ctx, &life, &grace); err != nil {
		return failure(ctx, "check", err)
	}
	f.Facts = append(f.Facts, fmt.Sprintf("default_time_to_live %v, gc_grace_seconds %v", time.Duration(life)*time.Second, time.Duration(grace)*time.Second))
	f.Advice = append(f.Advice, fmt.Sprintf("what is deleted, or ends, lies as a tombstone for gc_grace_seconds (%v): a session that lives longer than that, and was destroyed while one of its nodes was away, "+
		"comes back if the table is not repaired in time", time.Duration(grace)*time.Second))
	columns, err := c.columns(ctx, c.opt.Table)
	if err != nil {
		return err
	}
	for _, known := range []string{c.opt.ID, c.opt.Data, c.opt.Expires, c.opt.Nonce} {
		delete(columns, known)
	}
	if c.opt.Nonce == "" {
		f.Advice = append(f.Advice, fmt.Sprintf("where an answer of Cassandra's is lost, our write cannot be told from another one of the same data, and is answered as unknown: "+
			"a column of our own can tell (ALTER TABLE %s ADD sessile_nonce blob; nonce=sessile_nonce)", c.table(c.opt.Table)))
	}
	if len(columns) > 0 {
		f.Advice = append(f.Advice, fmt.Sprintf("the table has other columns (%s): they are not moved, and are null in a session that is made through the gateway",
			strings.Join(slices.Sorted(maps.Keys(columns)), ", ")))
	}
	return nil
}

func (c *cluster) checkSettings(ctx context.Context, f *store.Findings) error {
	rows := c.ask(ctx, "SELECT name, value FROM system_views.settings").IterContext(ctx)
	set := map[string]string{}
	for name, value := "", ""; rows.Scan(&name, &value); {
		set[name] = value
	}
	if rows.Close() != nil {
		return nil // an older version's, or not ours to read
	}
	if v := set["paxos_variant"]; strings.Contains(v, "without_linearizable") {
		f.Against = append(f.Against, fmt.Sprintf("paxos_variant is %s: serial reads do not end what was begun, and a write that was found not to have happened may happen later", v))
	}
	if set["paxos_variant"] == "v1" {
		f.Advice = append(f.Advice, "paxos_variant is v1: v2 takes half the round trips for each write (see NEWS.txt of Cassandra 4.1 on how to change it)")
	}
	// A transaction carries the old data and the new.
	for _, name := range []string{"max_mutation_size", "native_transport_max_frame_size"} {
		if n, ok := strings.CutSuffix(set[name], "MiB"); ok {
			if mib, err := strconv.Atoi(n); err == nil && mib<<20 < 2*c.opt.MaxValue {
				f.Advice = append(f.Advice, fmt.Sprintf("%s is %s, and a transaction carries the old data and the new: sessions of half of that cannot be written", name, set[name]))
			}
		}
	}
	return nil
}

// checkRights asks what this user may do. Where nobody is asked for a password, everybody may do everything.
func (c *cluster) checkRights(ctx context.Context, f *store.Findings) error {
	user := c.opt.Username
	if user == "" {
		return nil
	}
	rows := c.ask(ctx, "LIST ROLES OF '"+strings.ReplaceAll(user, "'", "''")+"'").IterContext(ctx)
	for super := false; rows.Scan(nil, &super, nil, nil, nil); {
		if super {
			return rows.Close()
		}
	}
	if err := rows.Close(); err != nil {
		return nil // not to be known
	}
	rows = c.ask(ctx, "LIST ALL PERMISSIONS OF '"+strings.ReplaceAll(user, "'", "''")+"'").IterContext(ctx)
	may := map[string]bool{}
	for role, resource, right := "", "", ""; rows.Scan(&role, nil, &resource, &right); {
		may[right+" on "+resource] = true
	}
	var said *gocql.RequestErrInvalid
	if err := rows.Close(); errors.As(err, &said) {
		return nil // AllowAllAuthorizer
	} else if err != nil {
		return failure(ctx, "check", err)
	}
	has := func(right, table string) bool {
		for _, on := range []string{"<all keyspaces>", "<keyspace " + c.opt.Keyspace + ">", "<all tables in " + c.opt.Keyspace + ">",
			"<table " + c.opt.Keyspace + "." + table + ">"} {
			if may[right+" on "+on] {
				return true
			}
		}
		return false
	}
	for _, table := range []string{c.opt.Table, ours} {
		for _, right := range []string{"SELECT", "MODIFY"} {
			if !has(right, table) {
				f.Against = append(f.Against, fmt.Sprintf("the user may not %s %s.%s: GRANT %s ON %s TO %q", right, c.opt.Keyspace, table, right, c.table(table), user))
			}
		}
	}
	there, err := c.columns(ctx, ours)
	if err == nil && len(there) == 0 && !has("CREATE", "") {
		f.Against = append(f.Against, fmt.Sprintf("there is no table %s yet, and the user may not make it: %s;", ours, c.creation(ours, oursIs, oursWith)))
	}
	return err
}

// sampled is how many sessions are looked at.
const sampled = 1000

// checkSample looks when sessions end, and what cannot be moved.
func (s *Store) checkSample(ctx context.Context, f *store.Findings) error {
	page, err := s.Scan(ctx, "", sampled)
	if err != nil {
		return err
	}
	c, err := s.cluster(ctx)
	if err != nil {
		return err
	}
	var left []time.Duration
	var lead time.Duration
	empty, endless, large, both, early := 0, 0, 0, 0, 0
	for _, key := range page.Keys {
		is, err := c.read(ctx, key, s.opt.Consistency)
		switch {
		case err != nil:
			return err
		case !is.live():
			empty++
			continue
		case is.ends.IsZero():
			endless++
		default:
			left = append(left, time.Until(is.ends).Round(time.Second))
		}
		if len(is.data) > s.opt.MaxValue {
			large++
		}
		if is.col != nil && is.life > 0 {
			both++
		}
		if is.lead > apart {
			early++
			lead = max(lead, is.lead)
		}
	}
	if n := len(left); n > 0 {
		slices.Sort(left)
		f.Facts = append(f.Facts, fmt.Sprintf("deadlines: the first in %v, half of them within %v, the last in %v", left[0], left[n/2], left[n-1]))
	}
	of := fmt.Sprintf(" of %d sampled rows ", len(page.Keys))
	if empty > 0 {
		f.Facts = append(f.Facts, fmt.Sprint(empty, of, "have no data (any more), and are no sessions"))
	}
	if large > 0 {
		f.Advice = append(f.Advice, fmt.Sprint(large, of, "are too large (max_value), and are not moved"))
	}
	if early > 0 {
		f.Against = append(f.Against, fmt.Sprint(early, of, "were written by a clock that is ahead, by up to ", lead.Round(time.Millisecond),
			": until then nobody can write or destroy them. Set the clocks of the application servers (NTP)"))
	}
	if both > 0 {
		f.Advice = append(f.Advice, fmt.Sprint(both, of, "end by a TTL, too: ", s.opt.Expires, " counts, and is to be the sooner"))
	}
	if endless > 0 {
		then := "are not moved: say how long a session lives that nobody uses (lifetime)"
		if s.opt.Lifetime > 0 {
			then = fmt.Sprintf("get one, %v from when they are copied", s.opt.Lifetime)
		}
		f.Advice = append(f.Advice, fmt.Sprint(endless, of, "have no deadline, and ", then))
	}
	return nil
}
