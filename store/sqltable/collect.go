package sqltable

import "context"

// collected is how many rows one statement of Collect takes at the most: few enough that others do not wait for it.
const collected = 500

// Collect removes rows that are past their deadline, and reports how many: what an application's own collector does for its
// table, and somebody has to do for one of ours. It ends with ctx.
func (s *Store) Collect(ctx context.Context) (removed int64, err error) {
	ends := s.ends()
	if ends == "" {
		return 0, nil
	}
	for {
		q := s.query("DELETE FROM "+s.table+" WHERE "+ends+" <= "+s.d.now+" LIMIT ?", collected)
		if s.d == postgres {
			q = s.query("DELETE FROM "+s.table+" WHERE "+s.id+" IN (SELECT "+s.id+" FROM "+s.table+" WHERE "+ends+" <= "+s.d.now+
				" LIMIT ?) AND "+ends+" <= "+s.d.now, collected)
		}
		op, cancel := s.begin(ctx)
		n, err := s.exec(op, "", q)
		cancel()
		removed += n
		if err != nil || n < collected {
			return removed, err
		}
	}
}
