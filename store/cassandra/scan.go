package cassandra

import (
	"context"
	"errors"
	"math"
	"strconv"

	gocql "github.com/apache/cassandra-gocql-driver/v2"

	"github.com/sessile/sessile/store"
)

// Scan implements store.Store. Sessions come in the order of their tokens, and the cursor is the token of the last one, so that it
// outlives the process and names nobody.
func (s *Store) Scan(ctx context.Context, cursor string, limit int) (page store.Page, err error) {
	if err := store.Gone(ctx); err != nil {
		return page, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 5*s.opt.Bound, errTimeout) // it reads from all nodes
	defer cancel()
	c, err := s.cluster(ctx)
	if err != nil {
		return page, err
	}
	after := int64(math.MinInt64) // which is no session's token
	if cursor != "" {
		if after, err = strconv.ParseInt(cursor, 10, 64); err != nil {
			return page, invalid("no such cursor was given out")
		}
	}
	last := int64(math.MaxInt64)
	for limit = max(limit, 2); ; {
		rows := c.Query(c.scan, after, last, limit).PageSize(limit).IterContext(ctx)
		var key string
		var token int64
		var tokens []int64
		page.Keys = nil
		for rows.Scan(&key, &token) {
			page.Keys, tokens = append(page.Keys, key), append(tokens, token)
		}
		if err := rows.Close(); tooMuch(err) && uint64(last)-uint64(after) > 1 {
			// What has gone lies there as well, and a node refuses to read over too much of it: half as far, then.
			last = after + int64((uint64(last)-uint64(after))/2)
			continue
		} else if err != nil {
			return store.Page{}, failure(ctx, "scan", err)
		}
		n := len(tokens)
		if n < limit {
			if last < math.MaxInt64 {
				page.Cursor = strconv.FormatInt(last, 10)
			}
			return page, nil
		}
		// Two ids may have one token, which who makes ids can see to. A page does not end among them.
		for n > 0 && tokens[n-1] == token {
			n--
		}
		if n > 0 {
			page.Keys, page.Cursor = page.Keys[:n], strconv.FormatInt(tokens[n-1], 10)
			return page, nil
		}
		limit *= 2
	}
}

// tooMuch reports whether a node could not read that much.
func tooMuch(err error) bool {
	var said gocql.RequestError
	return errors.As(err, &said) && (said.Code() == gocql.ErrCodeReadFailure || said.Code() == gocql.ErrCodeReadTimeout)
}
