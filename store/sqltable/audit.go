package sqltable

import (
	"context"
	"database/sql"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/sessile/sessile/store"
)

// ours stands in every statement of ours, in MySQL, whose process list shows nothing else to know them by. PostgreSQL knows
// application_name.
const ours = "/* sessile */ "

// auditEvery is how often the server's list is looked at.
const auditEvery = 50 * time.Millisecond

// Audit implements store.Auditor: it looks into the server's list of connections for statements that name the table.
func (s *Store) Audit(ctx context.Context) (store.Audit, error) {
	_, name := s.opt.Table.place()
	named := regexp.MustCompile(`(?i)(^|[^a-z0-9_])` + regexp.QuoteMeta(name) + `($|[^a-z0-9_])`)
	writers, readers := map[string]bool{}, map[string]bool{}
	var a store.Audit
	look, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.opt.Bound) // at least once, however short the time
	defer cancel()
	begin, err := s.ask(look, "SELECT "+s.d.now)
	if err != nil {
		return a, err
	}
	seesAll, err := s.ask(look, s.d.seesAll)
	if err != nil {
		return a, err
	}
	if seesAll == "0" {
		a.Blind = "this user sees the statements of its own connections only: " + s.d.letSee
	}
	for ; ; look = ctx {
		err := s.others(look, begin, func(who, text string) {
			if strings.Contains(text, ours) || !named.MatchString(text) {
				return
			}
			verb, _, _ := strings.Cut(strings.ToUpper(strings.TrimSpace(text)), " ")
			if verb == "SELECT" && !strings.Contains(strings.ToUpper(text), "FOR UPDATE") {
				readers[who+": SELECT"] = true
				return
			}
			writers[who+": "+verb[:min(len(verb), 16)]] = true
		})
		if ctx.Err() != nil {
			a.Writers, a.Readers = slices.Sorted(maps.Keys(writers)), slices.Sorted(maps.Keys(readers))
			return a, nil
		}
		if err != nil {
			return a, err
		}
		select {
		case <-time.After(auditEvery):
		case <-ctx.Done():
		}
	}
}

// others calls each for the statements of other connections to this database, since begin as far as the server knows.
func (s *Store) others(ctx context.Context, begin string, each func(who, text string)) error {
	var args []any
	if strings.Contains(s.d.others, "?") {
		args = []any{begin}
	}
	return s.rows(ctx, s.query(s.d.others, args...), "audit", func(rows *sql.Rows) error {
		var who, text sql.NullString
		err := rows.Scan(&who, &text)
		if err == nil {
			each(who.String, text.String)
		}
		return err
	})
}
