package cassandra

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	gocql "github.com/apache/cassandra-gocql-driver/v2"

	"github.com/sessile/sessile/store"
)

var (
	errTimeout = errors.New("the operation took too long")
	errClosed  = fmt.Errorf("store/cassandra: %w: the store is closed", store.ErrUnavailable)
)

// A cluster is what we are connected to, and what was found there.
type cluster struct {
	*gocql.Session
	opt *Options

	id, data kind
	expires  kind // "": the TTL
	ends     bool // rows of a table with a column of deadlines end by themselves, too

	selectRow, updateRow, deleteRow    string
	scan                               string
	selectNote, updateNote, deleteNote string
}

// again is how long nobody tries to connect after somebody has.
const again = 500 * time.Millisecond

// cluster returns what we are connected to. It connects where we are not.
func (s *Store) cluster(ctx context.Context) (*cluster, error) {
	for {
		s.mu.Lock()
		switch {
		case s.closed:
			s.mu.Unlock()
			return nil, errClosed
		case s.c != nil:
			defer s.mu.Unlock()
			return s.c, nil
		case s.trying == nil && time.Since(s.tried) < again:
			defer s.mu.Unlock()
			return nil, s.err
		case s.trying == nil:
			s.trying = make(chan struct{})
			s.wg.Go(s.connect) // not for this caller alone
		}
		trying := s.trying
		s.mu.Unlock()
		select {
		case <-trying:
		case <-ctx.Done():
			return nil, fmt.Errorf("store/cassandra: %w: no node has answered yet", store.ErrDown)
		}
	}
}

func (s *Store) connect() {
	c, err := dial(&s.opt)
	if err != nil && !errors.Is(err, store.ErrUnavailable) { // what is asked of it now is certainly not done
		err = fmt.Errorf("%w: %w", store.ErrUnavailable, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if late := !s.tried.IsZero(); late && err == nil {
		s.opt.Logger.Info("the origin is there")
	} else if late && !errors.Is(err, store.ErrDown) {
		s.opt.Logger.Error("the origin is there, and cannot be used", "error", err)
	}
	s.c, s.err, s.tried = c, err, time.Now()
	close(s.trying)
	s.trying = nil
}

// session connects to the nodes of a datacenter, or to all of them.
func session(opt *Options, datacenter string) (*gocql.Session, error) {
	cfg := gocql.NewCluster(opt.Hosts...)
	cfg.Consistency, cfg.SerialConsistency = opt.Consistency, opt.Serial
	cfg.ConnectTimeout, cfg.Timeout, cfg.WriteTimeout = opt.DialTimeout, opt.Bound, opt.Bound
	d := &dialer{opt: opt}
	cfg.NumConns, cfg.HostDialer = opt.Conns, d
	cfg.RetryPolicy = nil         // whether a retry is safe is known here
	cfg.WriteCoalesceWaitTime = 0 // a page waits for each of its requests
	cfg.DefaultTimestamp = false
	cfg.ReconnectInterval = 500 * time.Millisecond
	cfg.ReconnectionPolicy = &gocql.ConstantReconnectionPolicy{MaxRetries: 1, Interval: 100 * time.Millisecond}
	cfg.Metadata.CacheMode = gocql.KeyspaceOnly
	if datacenter != "" {
		cfg.HostFilter = gocql.DataCenterHostFilter(datacenter) // another one's nodes would have a quorum of their own
	}
	cfg.PoolConfig.HostSelectionPolicy = gocql.TokenAwareHostPolicy(gocql.RoundRobinHostPolicy(), gocql.ShuffleReplicas())
	if opt.Username != "" {
		cfg.Authenticator = gocql.PasswordAuthenticator{Username: opt.Username, Password: opt.Password}
	}
	s, err := cfg.CreateSession()
	if err != nil {
		return nil, d.explain(err)
	}
	return s, nil
}

// dial connects to the cluster and looks at the table.
func dial(opt *Options) (*cluster, error) {
	s, err := session(opt, opt.Datacenter)
	if err != nil && opt.Datacenter != "" { // is there such a one?
		if s, e := session(opt, ""); e == nil {
			defer s.Close()
			centers, e := (&cluster{Session: s}).datacenters(context.Background())
			if e == nil && !slices.Contains(centers, opt.Datacenter) {
				return nil, fmt.Errorf("store/cassandra: there is no datacenter %s: there are %s", opt.Datacenter, strings.Join(centers, ", "))
			}
		}
	}
	if err != nil {
		return nil, err
	}
	c := &cluster{Session: s, opt: opt}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second+opt.Bound)
	defer cancel()
	if err := c.prepare(ctx); err != nil {
		s.Close()
		return nil, err
	}
	return c, nil
}

// prepare looks at the table and writes down what is asked of it.
func (c *cluster) prepare(ctx context.Context) error {
	o := c.opt
	centers, err := c.datacenters(ctx)
	if err != nil {
		return err
	}
	local := o.Serial == gocql.LocalSerial || slices.Contains([]gocql.Consistency{gocql.LocalQuorum, gocql.LocalOne}, o.Consistency)
	if o.Datacenter == "" && local && len(centers) > 1 {
		return fmt.Errorf("store/cassandra: the cluster has the datacenters %s, and a write that is local to one is none in the others: "+
			"say datacenter=, the same for every gateway", strings.Join(centers, ", "))
	}
	columns, err := c.columns(ctx, o.Table)
	if err != nil {
		return err
	}
	if len(columns) == 0 && o.Create {
		if err := c.create(ctx, o.Table, fmt.Sprintf("(%s text PRIMARY KEY, %s blob, %s blob)", quote(o.ID), quote(o.Data), quote(o.Nonce)), ""); err != nil {
			return err
		}
		columns = map[string]column{o.ID: {"text", "partition_key"}, o.Data: {"blob", "regular"}, o.Nonce: {"blob", "regular"}}
	}
	if len(columns) == 0 {
		return fmt.Errorf("store/cassandra: there is no table %s in keyspace %s", o.Table, o.Keyspace)
	}
	for what, n := range map[string]string{"id": o.ID, "data": o.Data, "expires": o.Expires, "nonce": o.Nonce} {
		if _, there := columns[n]; !there && n != "" {
			return fmt.Errorf("store/cassandra: table %s has no column %s (%s=)", o.Table, n, what)
		}
	}
	for n, is := range columns {
		if key := is.part == "partition_key"; key != (n == o.ID) || is.part == "clustering" {
			return fmt.Errorf("store/cassandra: table %s has not one row to each %s: its primary key has to be that column alone", o.Table, o.ID)
		}
	}
	content := []kind{"blob", "text", "ascii"}
	times := []kind{"", "timestamp", "bigint", "int"}
	c.id, c.data, c.expires = columns[o.ID].kind, columns[o.Data].kind, columns[o.Expires].kind
	if !slices.Contains(content, c.id) || !slices.Contains(content, c.data) || !slices.Contains(times, c.expires) {
		return fmt.Errorf("store/cassandra: ids and data are blob, text or ascii, deadlines timestamp, bigint or int: table %s has %s", o.Table, c.types())
	}
	if c.expires != "" {
		var life int
		err := c.ask(ctx, "SELECT default_time_to_live FROM system_schema.tables WHERE keyspace_name = ? AND table_name = ?", o.Keyspace, o.Table).ScanContext(ctx, &life)
		if err != nil {
			return failure(ctx, "table", err)
		}
		c.ends = life > 0
	}
	table, id, data := c.table(o.Table), quote(o.ID), quote(o.Data)
	more, set, same := "", "", ""
	also := func(column string) {
		more, set, same = more+", "+column, set+", "+column+" = ?", same+" AND "+column+" = ?"
	}
	if o.Nonce != "" {
		also(quote(o.Nonce))
	}
	if o.Expires != "" {
		also(quote(o.Expires))
	}
	c.selectRow = "SELECT toUnixTimestamp(now()), " + data + ", TTL(" + data + "), WRITETIME(" + data + ")" + more + " FROM " + table + " WHERE " + id + " = ?"
	c.updateRow = "UPDATE " + table + " USING TTL ? SET " + data + " = ?" + set + " WHERE " + id + " = ? IF " + data + " = ?" + same
	c.deleteRow = "DELETE FROM " + table + " WHERE " + id + " = ? IF " + data + " = ?" + same
	c.scan = "SELECT " + id + ", token(" + id + ") FROM " + table + " WHERE token(" + id + ") > ? AND token(" + id + ") <= ? LIMIT ?"
	notes := c.table(ours)
	c.selectNote = "SELECT value, TTL(value), nonce FROM " + notes + " WHERE name = ?"
	c.updateNote = "UPDATE " + notes + " USING TTL ? SET value = ?, nonce = ? WHERE name = ? IF value = ?"
	c.deleteNote = "DELETE FROM " + notes + " WHERE name = ? IF value = ?"
	return nil
}

func quote(name string) string              { return `"` + name + `"` }
func (c *cluster) table(name string) string { return quote(c.opt.Keyspace) + "." + quote(name) }
func (c *cluster) types() string {
	return strings.TrimSpace(fmt.Sprint(c.id, " ", c.data, " ", c.expires))
}
func (c *cluster) ask(_ context.Context, cql string, args ...any) *gocql.Query {
	return c.Query(cql, args...).Consistency(gocql.LocalOne)
}

// column is what the schema says of one.
type column struct {
	kind kind
	part string // of the primary key, or "regular"
}

func (c *cluster) columns(ctx context.Context, table string) (map[string]column, error) {
	rows := c.ask(ctx, "SELECT column_name, type, kind FROM system_schema.columns WHERE keyspace_name = ? AND table_name = ?", c.opt.Keyspace, table).IterContext(ctx)
	all := map[string]column{}
	var n string
	var is column
	for rows.Scan(&n, (*string)(&is.kind), &is.part) {
		all[n] = is
	}
	if err := rows.Close(); err != nil {
		return nil, failure(ctx, "table", err)
	}
	return all, nil
}

func (c *cluster) datacenters(ctx context.Context) (all []string, err error) {
	for _, cql := range []string{"SELECT data_center FROM system.local", "SELECT data_center FROM system.peers"} {
		rows := c.ask(ctx, cql).IterContext(ctx)
		for dc := ""; rows.Scan(&dc); {
			all = append(all, dc)
		}
		if err := rows.Close(); err != nil {
			return nil, failure(ctx, "datacenters", err)
		}
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// creation makes a table where there is none. Several gateways may, at once and at different nodes: without an id that is the
// same for all of them, each node would make another table of that name.
func (c *cluster) creation(table, columns, with string) string {
	sum := sha256.Sum256([]byte(c.opt.Keyspace + "." + table))
	id := gocql.UUID(sum[:16])
	id[6], id[8] = id[6]&0x0f|0x50, id[8]&0x3f|0x80
	return fmt.Sprintf("CREATE TABLE IF NOT EXISTS %s %s WITH ID = %s%s", c.table(table), columns, id, with)
}

func (c *cluster) create(ctx context.Context, table, columns, with string) error {
	cql := c.creation(table, columns, with)
	err := c.Query(cql).ExecContext(ctx)
	for err != nil { // it can take longer than we wait for an answer
		if is, _ := c.columns(ctx, table); len(is) > 0 {
			return nil
		}
		var said gocql.RequestError
		if errors.As(err, &said) && said.Code() != gocql.ErrCodeServer {
			return fmt.Errorf("store/cassandra: %s: %w. Have it made: %s: %w", said.Message(), store.ErrUnavailable, cql, errors.ErrUnsupported)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return failure(ctx, "create table "+table, err)
		}
	}
	return nil
}

// row is what the table has of a session.
type row struct {
	data []byte // nil: no session
	ends time.Time
	life int    // seconds left by the TTL; 0: none
	col  *int64 // the deadline as it stands in the column of deadlines
	// nonce is that of the write that is there, nil where that was not ours.
	nonce []byte
	any   bool   // of what is written: whatever is there
	node  string // that has answered

	written int64         // when the data was, in microseconds by the clock of whoever did; 0: there is none
	lead    time.Duration // how far that is before the server's

	past  bool          // the deadline is over by the server's clock
	ahead time.Duration // how far that is before ours, at the most
}

func (r row) live() bool { return r.data != nil && !r.past }

func (r row) version() store.Version {
	if !r.live() {
		return store.Absent
	}
	return store.VersionOf(r.data, 0)
}

// same reports whether both are one to a condition.
func (r row) same(o row) bool {
	deadline := (r.col == nil) == (o.col == nil) && (r.col == nil || *r.col == *o.col)
	return (r.data == nil) == (o.data == nil) && bytes.Equal(r.data, o.data) && deadline && bytes.Equal(r.nonce, o.nonce)
}

// read reads a row.
func (c *cluster) read(ctx context.Context, key string, level gocql.Consistency) (r row, err error) {
	var data *[]byte
	var life *int
	var written *int64
	var now int64
	to := []any{&now, &data, &life, &written}
	col := any(&r.col)
	var at *time.Time
	var short *int
	switch c.expires {
	case "timestamp":
		col = &at
	case "int":
		col = &short
	}
	if c.opt.Nonce != "" {
		to = append(to, &r.nonce)
	}
	if c.expires != "" {
		to = append(to, col)
	}
	asked := time.Now()
	r.node, err = c.one(ctx, level, to, c.selectRow, key)
	if err != nil {
		return r, failure(ctx, "read", err)
	}
	if data != nil {
		r.data = append([]byte{}, *data...) // which is not nil
	}
	server, answered := time.UnixMilli(now), time.Now()
	if written != nil {
		r.written, r.lead = *written, time.UnixMicro(*written).Sub(server)
	}
	if now != 0 { // else there is no row, and nobody has told
		r.ahead = server.Sub(asked)
	}
	if life != nil {
		// The server counts from the second in which it begins. Where another one may have begun before it looked at the clock, that is
		// not known better than by ours.
		r.life = *life
		if part := server.Sub(server.Truncate(time.Second)); part > answered.Sub(asked) {
			r.ends = answered.Add(time.Duration(r.life)*time.Second - part)
		} else {
			r.ends = asked.Add(time.Duration(r.life) * time.Second)
		}
	}
	if c.expires == "" {
		return r, nil
	}
	if at != nil {
		ms := at.UnixMilli()
		r.col = &ms
	}
	if short != nil {
		s := int64(*short)
		r.col = &s
	}
	r.ends = time.Time{}
	if r.col != nil {
		r.ends = c.deadline(*r.col).Add(answered.Sub(server))
		r.past = !server.Before(c.deadline(*r.col))
	}
	return r, nil
}

// deadline is what the column of deadlines says, by the server's clock.
func (c *cluster) deadline(col int64) time.Time {
	if c.expires == "timestamp" {
		return time.UnixMilli(col)
	}
	return time.Unix(col, 0)
}

// look reads a row serially, and the mark beside it: with m it has to be that one.
func (c *cluster) look(ctx context.Context, key string, m *store.Mark) (row, error) {
	if m == nil {
		return c.read(ctx, key, c.opt.Serial)
	}
	sealed := make(chan error, 1)
	go func() { sealed <- c.still(ctx, m) }() // it ends with ctx, before whoever waits for it
	is, err := c.read(ctx, key, c.opt.Serial)
	if other := <-sealed; other != nil {
		return row{}, other
	}
	return is, err
}

// swap replaces was by to, or by nothing where that has no data. It answers false where something else is there by now, or where
// certainly nothing was done.
func (c *cluster) swap(ctx context.Context, key string, was, to row) (done bool, err error) {
	cql, args := c.deleteRow, []any{key, null(was.data)}
	if to.data != nil {
		life := 0
		if c.expires == "" || c.ends || was.life > 0 {
			life = lifetime(to.ends)
		}
		set := []any{life, to.data}
		if c.opt.Nonce != "" {
			to.nonce = []byte(rand.Text())
			set = append(set, to.nonce)
		}
		if c.expires != "" {
			col := c.column(to.ends.Add(was.ahead))
			to.col = &col
			set = append(set, col)
		}
		cql, args = c.updateRow, append(set, args...)
	}
	if c.opt.Nonce != "" {
		args = append(args, null(was.nonce))
	}
	if c.expires != "" {
		args = append(args, was.col)
	}
	if err := c.outwait(ctx, was); err != nil {
		return false, err
	}
	done, sure, err := c.cas(ctx, "write", was.node, cql, args...)
	if done && (was.data == nil || was.lead > -apart) {
		return c.counts(ctx, key, was, to)
	}
	if err == nil || sure {
		return done, err
	}
	// Nobody knows. A serial read ends what was begun, one way or the other. Without a nonce, the same data may be another's; that
	// makes a difference to who has asked that nobody else had written.
	is, e := c.read(ctx, key, c.opt.Serial)
	switch {
	case e != nil:
		return false, err
	case is.same(to) && !was.same(to) && (to.nonce != nil || to.any || to.data == nil):
		return true, nil
	case is.same(was) && answered(err):
		return false, nil
	}
	return false, err
}

// apart is how far the clocks of two nodes are taken to be from each other at the most.
const apart = 100 * time.Millisecond

// outwait waits until the server's clock is past that of whoever wrote what is to be replaced: before, a transaction would be
// applied, and lose against it, a logout as well as any.
func (c *cluster) outwait(ctx context.Context, was row) error {
	if was.lead < 0 || was.data == nil {
		return nil
	}
	wait := was.lead + 2*time.Millisecond // it tells whole ones
	if end, bound := ctx.Deadline(); !bound || time.Until(end) > wait {
		select {
		case <-time.After(wait):
			return nil
		case <-ctx.Done():
		}
	}
	return fmt.Errorf("store/cassandra: %w: the session was written by a clock that is %v ahead", store.ErrUnavailable, was.lead.Round(time.Millisecond))
}

// counts reports whether what a transaction has written is what the table has. It is not where that was written by a clock that
// is ahead: another node's than the one that was waited for, or the one of who deleted what was there, which nobody tells.
func (c *cluster) counts(ctx context.Context, key string, was, to row) (bool, error) {
	is, err := c.read(ctx, key, c.opt.Consistency)
	switch {
	case err != nil:
		return false, fmt.Errorf("%w: %w", store.ErrUnknown, err)
	case was.data == nil && is.data == nil && to.data != nil: // or somebody has deleted it since
		return false, fmt.Errorf("store/cassandra: %w: it was written, and is not there: was it deleted by a clock that is ahead?", store.ErrUnknown)
	}
	return is.written != was.written || was.data == nil, nil
}

// column is a deadline as it stands in the column of deadlines, rounded up.
func (c *cluster) column(ends time.Time) int64 {
	unit := time.Second
	if c.expires == "timestamp" {
		unit = time.Millisecond
	}
	if up := ends.Truncate(unit); up.Before(ends) {
		ends = up.Add(unit)
	}
	if c.expires == "timestamp" {
		return ends.UnixMilli()
	}
	if c.expires == "int" {
		return min(ends.Unix(), 1<<31-1)
	}
	return ends.Unix()
}

// null is nothing where there is none: to the driver an empty slice is a value.
func null(data []byte) any {
	if data == nil {
		return nil
	}
	return data
}

// patience is how long somebody waits for the driver to make a new connection for one that was lost: nobody else is to notice.
const patience = 300 * time.Millisecond

// one reads a row, if there is one, and says which node has answered. A node that takes long may stand still, so another one is
// asked, if there is one.
func (c *cluster) one(ctx context.Context, level gocql.Consistency, to []any, cql string, args ...any) (node string, err error) {
	slow := ""
	for end := time.Now().Add(patience); ; {
		q, short, cancel := c.Query(cql, args...).Consistency(level), ctx, func() {}
		if slow == "" {
			short, cancel = context.WithTimeout(ctx, c.opt.Bound/4)
		} else if other := c.other(slow); other != "" {
			q.SetHostID(other)
		}
		rows := q.IterContext(short)
		rows.Scan(to...)
		if host := rows.Host(); host != nil {
			node = host.HostID()
		}
		err = rows.Close()
		cancel()
		switch {
		case err == nil || answered(err) || ctx.Err() != nil:
			return node, err
		case errors.Is(err, context.DeadlineExceeded):
			slow = cmp.Or(node, "none")
			continue
		case time.Now().After(end):
			return node, err
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return node, err
		}
	}
}

// other returns a node that is up, and not that one; "" where there is none.
func (c *cluster) other(node string) string {
	for _, host := range c.GetHosts() {
		if host.IsUp() && host.HostID() != node && (c.opt.Datacenter == "" || host.DataCenter() == c.opt.Datacenter) {
			return host.HostID()
		}
	}
	return ""
}

// cas runs a lightweight transaction, by a node that has just answered, if one is named. Of an error it says whether certainly
// nothing was done.
func (c *cluster) cas(ctx context.Context, what, node, cql string, args ...any) (applied, sure bool, err error) {
	for end := time.Now().Add(patience); ; node = "" {
		if err := store.Gone(ctx); err != nil {
			return false, true, err
		}
		applied, err = c.Query(cql, args...).SetHostID(node).MapScanCASContext(ctx, map[string]any{})
		if err == nil {
			return applied, true, nil
		}
		if !errors.Is(err, gocql.ErrNoConnections) || time.Now().After(end) {
			break
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	if refused(err) {
		return false, true, failure(ctx, what, err)
	}
	if c.opt.doubt != nil {
		c.opt.doubt(err)
	}
	return false, false, fmt.Errorf("store/cassandra: %s: %w: %w", what, store.ErrUnknown, cause(ctx, err))
}

// refused reports whether a transaction was certainly not begun.
func refused(err error) bool {
	if errors.Is(err, gocql.ErrNoConnections) || errors.Is(err, gocql.ErrNoStreams) {
		return true
	}
	var said gocql.RequestError
	return errors.As(err, &said) && slices.Contains([]int{gocql.ErrCodeBootstrapping, gocql.ErrCodeSyntax, gocql.ErrCodeUnauthorized,
		gocql.ErrCodeInvalid, gocql.ErrCodeConfig, gocql.ErrCodeUnprepared, gocql.ErrCodeCredentials}, said.Code())
}

// answered reports whether a server has said that it does not know, and so has given up. One that has not answered may
// still begin.
func answered(err error) bool {
	var said gocql.RequestError
	return errors.As(err, &said)
}

// failure is an error of something that was not done, or changes nothing.
func failure(ctx context.Context, what string, err error) error {
	return fmt.Errorf("store/cassandra: %s: %w: %w", what, store.ErrUnavailable, cause(ctx, err))
}

// cause says why a context is over, where that is it.
func cause(ctx context.Context, err error) error {
	if errors.Is(err, context.DeadlineExceeded) && context.Cause(ctx) != nil {
		return context.Cause(ctx)
	}
	return err
}
