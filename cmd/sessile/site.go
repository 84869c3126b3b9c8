package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sessile/sessile/internal/config"
	"github.com/sessile/sessile/internal/gateway"
	"github.com/sessile/sessile/internal/resp"
	"github.com/sessile/sessile/migrate"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/open"
)

// stores are those of one site.
type stores struct {
	origin store.Origin // nil: a plain gateway
	target store.Target
}

func (s stores) close() error {
	var err error
	if s.origin != nil {
		err = s.origin.Close()
	}
	if s.target != nil {
		err = errors.Join(err, s.target.Close())
	}
	return err
}

// openStores opens a site's stores. A target that is down is none of its business: the phase says what that means.
func openStores(ctx context.Context, site config.Site, log *slog.Logger) (s stores, err error) {
	if !site.Origin.IsZero() {
		s.origin, err = open.Origin(ctx, site.Origin, open.Options{Prefix: site.OriginKey, LockSuffix: site.LockSuffix, Lifetime: site.Lifetime, MaxValue: site.MaxValue,
			Bound: site.Bound, Logger: log})
		if err != nil {
			return s, fmt.Errorf("site %s: origin %v: %w", site.Name, site.Origin, err)
		}
	}
	s.target, err = open.Target(ctx, site.Target, open.Options{Prefix: site.TargetKey, LockSuffix: site.LockSuffix, Logger: log})
	if err != nil {
		return s, errors.Join(fmt.Errorf("site %s: target %v: %w", site.Name, site.Target, err), s.close())
	}
	if err := apart(ctx, site, s); err != nil {
		return s, errors.Join(fmt.Errorf("site %s: %w", site.Name, err), s.close())
	}
	return s, nil
}

// apart returns an error where origin and target are one place under two addresses, as far as they can be asked now.
func apart(ctx context.Context, site config.Site, s stores) error {
	o, ok := s.origin.(store.Target)
	if !ok || !site.Origin.IsRedis() || site.Origin.Database() != site.Target.Database() || !alike(prefixOf(s.origin), prefixOf(s.target)) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	from, err := o.Instance(ctx)
	to, err2 := s.target.Instance(ctx)
	if err == nil && err2 == nil && from == to {
		return errors.New("origin and target are the same database of one server, and the sessions' names begin alike: say target-key, or another database")
	}
	return nil
}

// prefixOf is what the names of the sessions in a store begin with, where that is Redis.
func prefixOf(s store.Store) string {
	if i, ok := s.(informer); ok {
		return i.Prefix()
	}
	return ""
}

// alike reports whether sessions of two prefixes may have the same name.
func alike(a, b string) bool { return strings.HasPrefix(a, b) || strings.HasPrefix(b, a) }

// newEngine returns the engine that moves the site's sessions, s, as it is to see them.
func newEngine(site config.Site, s, seen stores, log *slog.Logger) (*migrate.Engine, error) {
	opt := site.Migrate
	opt.Logger = log
	if isPHP(site) {
		opt.OwnsKey = phpID[string]
	}
	if t, ok := s.target.(informer); ok {
		opt.Prefix = t.Prefix()
		// Ids come from cookies: one may be that of a lock, of what is ours, or of the access set.
		opt.OwnsKey = func(key string) bool {
			name, err := t.DataKey(nil, key)
			return err == nil && string(name) != site.AccessSet && (!isPHP(site) || phpID(key))
		}
		opt.TargetHealth = func(ctx context.Context) (migrate.TargetHealth, error) { return health(ctx, t) }
	}
	if o, ok := s.origin.(store.Checker); ok {
		opt.OriginCheck = func(ctx context.Context) (store.Findings, error) {
			f, err := o.Check(ctx)
			for _, look := range []func(context.Context, config.Site, stores) error{apart, arrived} {
				if why := look(ctx, site, s); why != nil && err == nil {
					f.Against = append(f.Against, why.Error())
				}
			}
			return f, err
		}
	}
	opt.Lifetime = site.Lifetime
	if o, ok := s.origin.(interface{ Lifetime() time.Duration }); ok {
		opt.Lifetime = max(opt.Lifetime, o.Lifetime())
	}
	e, err := migrate.New(seen.origin, seen.target, opt)
	if err != nil {
		return nil, fmt.Errorf("site %s: %w", site.Name, err)
	}
	return e, nil
}

// isPHP reports whether every key of the site is an id that PHP made.
func isPHP(site config.Site) bool { return site.Origin.Scheme() == "file" }

// phpID reports whether id can be that of a file: PHP's alphabet is A-Z a-z 0-9 , -, and with its "sess_" the id has to fit
// into a name of 255 bytes. session.sid_length may be 256, but PHP cannot open such files.
func phpID[T string | []byte](id T) bool {
	for i := range len(id) {
		switch c := id[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == ',', c == '-':
		default:
			return false
		}
	}
	return len(id) > 0 && len(id) <= 250
}

// informer is a target that is Redis.
type informer interface {
	Info(context.Context) (map[string]string, error)
	Prefix() string
	DataKey(dst []byte, key string) ([]byte, error)
}

// health reads what the gates want to know out of Redis' INFO.
func health(ctx context.Context, t informer) (migrate.TargetHealth, error) {
	info, err := t.Info(ctx)
	if err != nil {
		return migrate.TargetHealth{}, err
	}
	number := func(name string) int64 {
		n, _ := strconv.ParseInt(info[name], 10, 64) // 0: not known
		return n
	}
	h := migrate.TargetHealth{Version: info["redis_version"], Role: info["role"], Eviction: info["maxmemory_policy"],
		MaxMemory: number("maxmemory"), UsedMemory: number("used_memory"), Evicted: number("evicted_keys")}
	if info["aof_enabled"] == "1" {
		h.Persistence = "aof"
	}
	return h, nil
}

// errMoving: this target must not be served by itself.
var errMoving = errors.New("this target is in the middle of a move")

// neighbours are the workflows of other sites in the same target, whose keys config has found to be others.
func neighbours(c *config.Config, site config.Site) (names []string) {
	for _, s := range c.Sites {
		if s.Name != site.Name && !s.Origin.IsZero() && s.Target.Place() == site.Target.Place() {
			names = append(names, s.Migrate.Workflow)
		}
	}
	return names
}

// moves calls each with the control records in t of workflows that are not complete, but for those of neighbours, until it
// returns an error.
func moves(ctx context.Context, t store.Target, neighbours []string, each func(name string, c migrate.Control) error) error {
	names, err := t.Workflows(ctx)
	if err != nil {
		return err
	}
	for _, name := range names {
		if slices.Contains(neighbours, name) {
			continue
		}
		b, err := t.Workflow(name).Control(ctx)
		if err != nil {
			return err
		}
		var c migrate.Control
		switch {
		case b == nil: // cancelled just now
		case json.Unmarshal(b, &c) != nil:
			err = fmt.Errorf("%w: workflow %q was written by another version of sessile", errMoving, name)
		case !c.Purged:
			err = each(name, c)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// settled returns an error matching errMoving where a workflow, but for those of neighbours, has sessions in t that are
// not all there yet, or are no longer, and another error where that cannot be found out.
func settled(ctx context.Context, t store.Target, neighbours []string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if m, ok := t.(store.Marked); ok {
		mark, err := m.Mark(ctx)
		switch {
		case err != nil:
			return err
		case mark.Seal.Workflow != "":
			return fmt.Errorf("%w: it is, or was, the origin of workflow %q (floor %s). Serve that with its --origin and --target, or use another database",
				errMoving, mark.Seal.Workflow, mark.Seal.Floor)
		}
	}
	return moves(ctx, t, neighbours, func(name string, c migrate.Control) error {
		return fmt.Errorf("%w: workflow %q is in phase %s. Serve it with its --origin until `sessile migrate complete` or `cancel` has ended, "+
			"or use another database", errMoving, name, c.Phase)
	})
}

// arrived returns an error where the origin's own sessions have not all arrived: it is the target of a move that is not
// complete.
func arrived(ctx context.Context, _ config.Site, s stores) error {
	o, ok := s.origin.(store.Target)
	if !ok {
		return nil
	}
	mark, err := s.origin.Mark(ctx)
	if err == nil {
		err = moves(ctx, o, nil, func(name string, c migrate.Control) error {
			if c.Identity == mark.Identity || !alike(c.Prefix, prefixOf(s.origin)) {
				return nil // it leads away from here, or is another site's in the same database
			}
			return fmt.Errorf("workflow %q is in phase %s: `sessile migrate complete` first", name, c.Phase)
		})
	}
	if err != nil {
		return fmt.Errorf("is the origin the target of another move? %w", err)
	}
	return nil
}

// plainStore returns the store of a site without an origin: the target itself, or, where it cannot be asked now whether
// a move is going on there, one that answers nothing until it could.
func plainStore(ctx context.Context, site config.Site, neighbours []string, t store.Target, log *slog.Logger) (store.Store, error) {
	err := settled(ctx, t, neighbours)
	switch {
	case err == nil:
		return t, nil
	case errors.Is(err, errMoving):
		return nil, fmt.Errorf("site %s: target %v: %w", site.Name, site.Target, err)
	}
	log.Warn("the target cannot be asked; its site waits for it", "site", site.Name, "target", site.Target.String(), "error", err)
	return &unsettled{Target: t, neighbours: neighbours, log: log.With("site", site.Name)}, nil
}

// unsettled is a target of which it is not known yet whether a move is going on there.
type unsettled struct {
	store.Target
	neighbours []string
	fine, said atomic.Bool
	log        *slog.Logger
}

func (u *unsettled) look(ctx context.Context) error {
	if u.fine.Load() {
		return nil
	}
	err := settled(ctx, u.Target, u.neighbours)
	if err == nil {
		u.fine.Store(true)
		return nil
	}
	if errors.Is(err, errMoving) && !u.said.Swap(true) {
		u.log.Error("the site is not served", "error", err)
	}
	return fmt.Errorf("%w: %w", store.ErrUnavailable, err)
}

func (u *unsettled) Load(ctx context.Context, key string) (store.Record, error) {
	if err := u.look(ctx); err != nil {
		return store.Record{}, err
	}
	return u.Target.Load(ctx, key)
}

func (u *unsettled) Inspect(ctx context.Context, key string) (store.Record, error) {
	if err := u.look(ctx); err != nil {
		return store.Record{}, err
	}
	return u.Target.Inspect(ctx, key)
}

func (u *unsettled) Save(ctx context.Context, key string, rec store.Record, cond store.Condition) error {
	if err := u.look(ctx); err != nil {
		return err
	}
	return u.Target.Save(ctx, key, rec, cond)
}

func (u *unsettled) Touch(ctx context.Context, key string, expires time.Time) error {
	if err := u.look(ctx); err != nil {
		return err
	}
	return u.Target.Touch(ctx, key, expires)
}

func (u *unsettled) Delete(ctx context.Context, key string, cond store.Condition) (bool, error) {
	if err := u.look(ctx); err != nil {
		return false, err
	}
	return u.Target.Delete(ctx, key, cond)
}

func (u *unsettled) Lock(ctx context.Context, key, token string, life time.Duration) error {
	if err := u.look(ctx); err != nil {
		return err
	}
	return u.Target.Lock(ctx, key, token, life)
}

func (u *unsettled) Unlock(ctx context.Context, key, token string) (bool, error) {
	if err := u.look(ctx); err != nil {
		return false, err
	}
	return u.Target.Unlock(ctx, key, token)
}

func (u *unsettled) LockHolder(ctx context.Context, key string) (string, time.Duration, error) {
	if err := u.look(ctx); err != nil {
		return "", 0, err
	}
	return u.Target.LockHolder(ctx, key)
}

// gatewaySite is what the gateway is told of a site.
func gatewaySite(site config.Site, s store.Store, target store.Target) gateway.Site {
	g := gateway.Site{
		Name: site.Name, Store: s, Prefix: site.OriginKey, LockSuffix: site.LockSuffix, Database: site.Database,
		SentinelMaster: site.SentinelMaster, Lifetime: site.Lifetime, SlidingWithoutTTL: site.Sliding, Insecure: site.Insecure,
		Hold: site.Hold, LockWait: site.LockWait, LockLife: site.LockLife, DestroyedMemory: site.DestroyedMemory, Linger: site.Linger,
		Limits: gateway.Limits{Value: site.MaxValue, Key: site.MaxKey, Args: site.MaxArgs, Conns: site.MaxConnections,
			Idle: site.IdleTimeout, Command: site.CommandTimeout, Output: site.MaxOutput, Memory: site.MaxMemory,
			UnauthenticatedArgs: site.MaxLoginArgs, UnauthenticatedArg: site.MaxLoginSize},
	}
	if t, ok := target.(interface{ Replicates() bool }); ok && t.Replicates() {
		g.Critical = site.Critical
	}
	for _, u := range site.Users {
		g.Users = append(g.Users, gateway.User{Name: u.Name, Passwords: u.Passwords})
	}
	if site.AccessSet != "" {
		g.AccessSet, g.Sets = site.AccessSet, target.(gateway.SortedSets) // config has seen that it is Redis
	}
	if len(site.ExtraCommands) > 0 { // config has seen that it is Redis, and that nothing is moved
		g.Passed, g.Passage = site.ExtraCommands, target.(gateway.Passage)
		if u, ok := s.(*unsettled); ok {
			g.Passage = passage{g.Passage, u.look}
		}
	}
	if isPHP(site) {
		g.KeyPattern = phpID[[]byte]
	}
	return g
}

// passage is the way to an unsettled target.
type passage struct {
	gateway.Passage
	look func(ctx context.Context) error
}

func (p passage) Command(ctx context.Context, args ...string) (v resp.Value, err error) {
	if err := p.look(ctx); err != nil {
		return v, err
	}
	return p.Passage.Command(ctx, args...)
}
