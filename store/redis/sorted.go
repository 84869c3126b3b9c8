package redis

import (
	"context"
	"strconv"

	"github.com/redis/rueidis"
)

// Sorted runs one command about a sorted set that an application keeps beside its sessions. It returns the answer as it
// comes, without its nesting: numbers and scores as text, nothing for null. No failure says whether it was executed. The
// name of the set is the application's own: Options.Prefix is not put before it. Scan does not list it, so that whoever
// removes the sessions spares it.
func (s *Store) Sorted(ctx context.Context, args ...string) ([]string, error) {
	r := s.ask(ctx, "sorted set", args...)
	var answer []string
	if r.has(0) {
		answer = flat(nil, &r.items[0])
	}
	return answer, r.fail()
}

func flat(list []string, m *rueidis.RedisMessage) []string {
	if elems, err := m.ToArray(); err == nil {
		for i := range elems {
			list = flat(list, &elems[i])
		}
		return list
	}
	if n, err := m.ToInt64(); err == nil {
		return append(list, strconv.FormatInt(n, 10))
	}
	text, err := m.ToString()
	if err != nil { // null
		return list
	}
	return append(list, text)
}
