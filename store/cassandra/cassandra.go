// Package cassandra keeps sessions in a table of Apache Cassandra (4.0 or later): a partition for each, of one row, with its
// lifetime as the TTL of its data, or in a column of deadlines.
//
// Cassandra resolves two plain writes by their clocks, so that the later one can lose, and be lost without a word beside a
// lightweight transaction, whose clock is another one. So this store writes by lightweight transactions alone: each write is bound to
// the data that it replaces, which was read serially just before. A write whose outcome the server does not know is found out by
// another serial read, which finishes or ends what was begun. A write that is executed late changes nothing that has changed since.
//
// A transaction holds one partition, so a write cannot be bound to the mark of the origin: that is read beside the data.
package cassandra

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"regexp"
	"slices"
	"sync"
	"time"
	"unicode/utf8"

	gocql "github.com/apache/cassandra-gocql-driver/v2"

	"github.com/sessile/sessile/store"
)

// Options of a Store. The zero value of a field is its default.
type Options struct {
	// Hosts are required: some nodes of the cluster, as host:port. The others are found through them.
	Hosts []string
	// Username and Password are those of PasswordAuthenticator. "" logs nobody in.
	Username, Password string
	// TLS is how connections are encrypted; nil: not at all.
	TLS *tls.Config
	// Datacenter is the only one that is asked. It is required where there are several and a consistency is a local one.
	Datacenter string

	// Keyspace is required. Table, ID and Data are the names of the table and of its columns, as they are written in quotes. The
	// defaults are sessions, id and data.
	Keyspace, Table, ID, Data string
	// Expires is a column of deadlines: a timestamp, or a number of seconds since 1970. "": the TTL of the data is the deadline.
	Expires string
	// Nonce is a column, blob or text, for a random text with each write of ours. With it is found out what became of a write
	// where another one of the same data cannot be told from it. "": such a write is unknown.
	Nonce string
	// Create has the table made where it is not there.
	Create bool

	// Serial is that of transactions, Serial or LocalSerial; the default is LOCAL_SERIAL. Consistency is that of plain reads and of
	// what a transaction writes: QUORUM or LOCAL_QUORUM, as Serial is (the default), EACH_QUORUM or ALL.
	Consistency, Serial gocql.Consistency

	// Lifetime is what a session has left that has no deadline, from whenever it is looked at. 0: such a session is refused.
	Lifetime time.Duration
	// MaxValue is the size in bytes of the largest session. The default is 1 MiB.
	MaxValue int
	// DialTimeout bounds the making of a connection; the default is 1 s. Bound bounds an operation; the default is 2 s.
	DialTimeout, Bound time.Duration
	// Conns is the number of connections to each node. The default is 2; each carries many operations at a time.
	Conns int
	// Logger hears that the cluster was not there, and is. nil is silence.
	Logger *slog.Logger

	dialer gocql.Dialer // for tests; nil is the driver's own
	doubt  func(error)  // for tests: the outcome of a transaction is not known
}

var name = regexp.MustCompile(`^[A-Za-z0-9_]{1,48}$`)

// seen is where plain reads see what transactions have done. A transaction that another one or a serial read finishes is written to
// QUORUM, or to LOCAL_QUORUM if that is local, whatever was asked for, and of those two neither has a node in common with the other
// for sure.
var seen = map[gocql.Consistency][]gocql.Consistency{
	gocql.LocalSerial: {gocql.LocalQuorum, gocql.EachQuorum, gocql.All},
	gocql.Serial:      {gocql.Quorum, gocql.EachQuorum, gocql.All},
}

func (o *Options) complete() error {
	o.Table, o.ID, o.Data = cmp.Or(o.Table, "sessions"), cmp.Or(o.ID, "id"), cmp.Or(o.Data, "data")
	o.Serial = cmp.Or(o.Serial, gocql.LocalSerial)
	sees, known := seen[o.Serial]
	if !known {
		return errors.New("store/cassandra: transactions are SERIAL or LOCAL_SERIAL")
	}
	o.Consistency = cmp.Or(o.Consistency, sees[0])
	o.MaxValue, o.Conns = cmp.Or(o.MaxValue, 1<<20), cmp.Or(o.Conns, 2)
	o.DialTimeout, o.Bound = cmp.Or(o.DialTimeout, time.Second), cmp.Or(o.Bound, 2*time.Second)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	switch {
	case len(o.Hosts) == 0:
		return errors.New("store/cassandra: no host")
	case o.MaxValue < 0 || o.Conns < 0 || o.DialTimeout < 0 || o.Bound < 0 || o.Lifetime < 0:
		return errors.New("store/cassandra: a number or a time is negative")
	case !slices.Contains(sees, o.Consistency):
		return fmt.Errorf("store/cassandra: reads at %s do not see every transaction at %s", o.Consistency, o.Serial)
	case o.Create && o.Expires != "":
		return errors.New("store/cassandra: a table of our own has no column of deadlines")
	}
	if o.Create {
		o.Nonce = "nonce"
	}
	columns := []string{o.ID, o.Data}
	for _, n := range []string{o.Expires, o.Nonce} {
		if n != "" {
			columns = append(columns, n)
		}
	}
	for _, n := range append(columns, o.Keyspace, o.Table) {
		if !name.MatchString(n) {
			return fmt.Errorf("store/cassandra: %q is no name of a keyspace, table or column", n)
		}
	}
	slices.Sort(columns)
	switch {
	case len(slices.Compact(slices.Clone(columns))) < len(columns):
		return errors.New("store/cassandra: two columns have one name")
	case o.Table == ours:
		return fmt.Errorf("store/cassandra: %s is not a table of sessions but what we keep beside them", ours)
	}
	return nil
}

// A Store is a table of sessions. It implements store.Origin.
type Store struct {
	opt Options

	mu     sync.Mutex // guards what follows; never held while anybody is asked
	c      *cluster   // nil: not connected
	trying chan struct{}
	tried  time.Time
	err    error // of the last attempt
	closed bool
	wg     sync.WaitGroup
}

var (
	_ store.Origin     = (*Store)(nil)
	_ store.BulkReader = (*Store)(nil)
	_ store.Checker    = (*Store)(nil)
)

// Open connects to the cluster and looks at the table. Where no node answers, and only then, it returns a store that is
// unavailable until one does: in ramp-down nobody needs the origin for an answer, and a gateway that is started anew then must
// not wait for it.
func Open(ctx context.Context, opt Options) (*Store, error) {
	if err := opt.complete(); err != nil {
		return nil, err
	}
	s := &Store{opt: opt}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	if _, err := s.cluster(ctx); err != nil {
		if !errors.Is(err, store.ErrDown) {
			return nil, errors.Join(err, s.Close())
		}
		s.opt.Logger.Warn("the origin cannot be asked; its site begins without it", "error", err)
	}
	return s, nil
}

// Close implements store.Store.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.wg.Wait()
	if c := s.c; c != nil { // it changes no more
		c.Close()
	}
	return nil
}

// Capabilities implements store.Store.
func (s *Store) Capabilities() store.Capabilities {
	return store.Capabilities{Scan: true, Conditional: true, NativeTTL: true, Lock: true, Seal: true, Ageless: s.opt.Lifetime > 0}
}

// Lifetime is what a session has left that has no deadline.
func (s *Store) Lifetime() time.Duration { return s.opt.Lifetime }

// maxKey is the size in bytes of the longest partition key.
const maxKey = 65535

func invalid(format string, a ...any) error {
	return fmt.Errorf("store/cassandra: %w: "+format, append([]any{store.ErrInvalid}, a...)...)
}

// begin bounds an operation, and sees to it that there is somebody to ask about this key.
func (s *Store) begin(ctx context.Context, key string) (context.Context, context.CancelFunc, *cluster, error) {
	if err := store.Gone(ctx); err != nil {
		return nil, nil, nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, s.opt.Bound, errTimeout)
	c, err := s.cluster(ctx)
	if err == nil && (key == "" || len(key) > maxKey || !c.id.holds(key)) {
		err = invalid("no such id is possible in column %s", s.opt.ID)
	}
	if err != nil {
		cancel()
		return nil, nil, nil, err
	}
	return ctx, cancel, c, nil
}

// mayBe refuses, without asking anybody, a key that no column takes.
func mayBe(key string) error {
	if key == "" || len(key) > maxKey {
		return invalid("no such id is possible")
	}
	return nil
}

// Load implements store.Store.
func (s *Store) Load(ctx context.Context, key string) (store.Record, error) {
	return s.load(ctx, key, s.opt.Consistency, false)
}

// Inspect implements store.Store. It reads serially: a write whose outcome nobody knows has happened then, or will not.
func (s *Store) Inspect(ctx context.Context, key string) (store.Record, error) {
	return s.load(ctx, key, s.opt.Serial, true)
}

func (s *Store) load(ctx context.Context, key string, level gocql.Consistency, deadline bool) (rec store.Record, err error) {
	if err := mayBe(key); err != nil {
		return rec, err
	}
	ctx, cancel, c, err := s.begin(ctx, key)
	if err != nil {
		return rec, err
	}
	defer cancel()
	is, err := c.read(ctx, key, level)
	switch {
	case err != nil:
		return rec, err
	case !is.live():
		return rec, store.ErrAbsent
	case len(is.data) > s.opt.MaxValue:
		return rec, fmt.Errorf("store/cassandra: %w", &store.RefusedError{Reason: "too large"})
	case is.ends.IsZero() && s.opt.Lifetime > 0:
		is.ends = time.Now().Add(s.opt.Lifetime)
	case is.ends.IsZero() && deadline:
		return rec, fmt.Errorf("store/cassandra: %w", &store.RefusedError{Reason: "without a deadline"})
	}
	return store.Record{Data: is.data, Expires: is.ends}, nil
}

// atOnce is how many keys are asked for at a time: no serial read answers for two partitions.
const atOnce = 32

// InspectAll implements store.BulkReader.
func (s *Store) InspectAll(ctx context.Context, keys []string) ([]*store.Record, error) {
	all := make([]*store.Record, len(keys))
	errs := make([]error, min(atOnce, len(keys)))
	var wg sync.WaitGroup
	for w := range errs {
		wg.Go(func() {
			for i := w; i < len(keys) && errs[w] == nil; i += len(errs) {
				rec, err := s.Inspect(ctx, keys[i])
				switch {
				case err == nil:
					all[i] = &rec
				case !errors.Is(err, store.ErrAbsent):
					errs[w] = err
				}
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

// Save implements store.Store.
func (s *Store) Save(ctx context.Context, key string, rec store.Record, cond store.Condition) error {
	return s.save(ctx, key, rec, cond, nil)
}

func (s *Store) save(ctx context.Context, key string, rec store.Record, cond store.Condition, m *store.Mark) error {
	switch {
	case !rec.Expires.After(time.Now()):
		return invalid("the deadline is not in the future")
	case rec.Flags != 0:
		return invalid("Cassandra keeps no flags")
	case len(rec.Data) > s.opt.MaxValue:
		return invalid("over %d bytes", s.opt.MaxValue)
	}
	data := rec.Data
	if data == nil {
		data = []byte{} // nil is written as null, which is nothing
	}
	_, err := s.change(ctx, key, m, func(c *cluster, was row) (*row, error) {
		switch {
		case !c.data.holds(string(data)):
			return nil, invalid("column %s takes no such bytes", s.opt.Data)
		case !cond.Holds(was.version()):
			return nil, store.ErrConflict
		}
		return &row{data: data, ends: rec.Expires, any: cond == store.Always}, nil
	})
	return err
}

// Touch implements store.Store. The lifetime of a cell is part of what is written, so the data is written again as it is.
func (s *Store) Touch(ctx context.Context, key string, expires time.Time) error {
	return s.touch(ctx, key, expires, nil)
}

func (s *Store) touch(ctx context.Context, key string, expires time.Time, m *store.Mark) error {
	if !expires.After(time.Now()) {
		return invalid("the deadline is not in the future")
	}
	_, err := s.change(ctx, key, m, func(_ *cluster, was row) (*row, error) {
		if !was.live() {
			return nil, store.ErrAbsent
		}
		return &row{data: was.data, ends: expires}, nil
	})
	return err
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, key string, cond store.Condition) (bool, error) {
	return s.remove(ctx, key, cond, nil)
}

func (s *Store) remove(ctx context.Context, key string, cond store.Condition, m *store.Mark) (bool, error) {
	return s.change(ctx, key, m, func(_ *cluster, was row) (*row, error) {
		if !cond.Holds(was.version()) {
			return nil, store.ErrConflict
		}
		return &row{}, nil
	})
}

// change looks what there is, and replaces exactly that by what next makes of it; a row without data is none. With m, the mark
// has to be that one. existed says whether there was a session.
func (s *Store) change(ctx context.Context, key string, m *store.Mark, next func(c *cluster, was row) (*row, error)) (existed bool, err error) {
	if err := mayBe(key); err != nil {
		return false, err
	}
	ctx, cancel, c, err := s.begin(ctx, key)
	if err != nil {
		return false, err
	}
	defer cancel()
	for {
		was, err := c.look(ctx, key, m)
		if err != nil {
			return false, err
		}
		to, err := next(c, was)
		if err != nil || to.data == nil && was.data == nil {
			return false, err
		}
		done, err := c.swap(ctx, key, was, *to)
		if done || err != nil {
			return was.live(), err
		}
		if err := store.Gone(ctx); err != nil { // nothing of ours has happened
			return false, err
		}
	}
}

// lifetime is a TTL. Cassandra compares whole seconds of a clock that is up to one behind, and a session must not end before its
// deadline, so one second more than it has. It knows no TTL of more than 20 years, and in the format of its files that every version
// reads no time after 2038-01-19: a deadline further away is as far as that.
func lifetime(ends time.Time) int {
	const most = 20 * 365 * 24 * time.Hour
	now := time.Now()
	last := time.Unix(math.MaxInt32-1, 0).Sub(now) - time.Hour // by another clock
	d := min(store.Record{Expires: ends}.Remaining(now), most-2*time.Second, last)
	return int((d+time.Second-1)/time.Second) + 1
}

// A kind is the type of a column.
type kind string

// holds reports whether a column of this type takes these bytes.
func (k kind) holds(s string) bool {
	switch k {
	case "blob":
		return true
	case "ascii":
		for i := range len(s) {
			if s[i] >= 0x80 {
				return false
			}
		}
		return true
	}
	return utf8.ValidString(s)
}
