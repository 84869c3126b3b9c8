package redis

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/redis/rueidis"

	"github.com/sessile/sessile/internal/resp"
)

// Command runs one command about what an application keeps beside its sessions, or instead of them. The names are the
// application's own: Options.Prefix is not put before any. Scan does not list them, so that whoever removes the sessions
// spares them.
//
// The answer is that of RESP3, as far as rueidis tells: every string is a Bulk, a set is an Array, and a Map is sorted by its keys. What
// the command itself finds wrong (ERR, WRONGTYPE) is an answer, too. Any other failure leaves it open whether it was executed.
func (s *Store) Command(ctx context.Context, args ...string) (v resp.Value, err error) {
	r := s.tell(ctx, "command", args...)
	if re, ok := errors.AsType[*replyError](r.err); ok {
		switch { // rueidis leaves out ERR
		case re.code == "WRONGTYPE":
			return resp.Value{Kind: resp.Error, Str: []byte(re.text)}, nil
		case strings.ToUpper(re.code) != re.code:
			return resp.Value{Kind: resp.Error, Str: []byte("ERR " + re.text)}, nil
		}
	}
	if r.err == nil && len(r.items) == 1 {
		v, err = valueOf(&r.items[0])
		r.unreadable(err)
	}
	return v, r.err
}

// Sorted is Command for a command about a sorted set. It returns the answer without its nesting: numbers and scores as text,
// nothing for null.
func (s *Store) Sorted(ctx context.Context, args ...string) ([]string, error) {
	v, err := s.Command(ctx, args...)
	if err == nil && v.Kind == resp.Error {
		err = fmt.Errorf("store/redis: sorted set: the server answers: %s", v.Str)
	}
	return flat(nil, &v), err
}

func valueOf(m *rueidis.RedisMessage) (v resp.Value, err error) {
	switch {
	case m.IsNil():
		return resp.Value{Kind: resp.Null, Null: true}, nil
	case m.IsInt64():
		v.Kind = resp.Int
		v.Int, err = m.ToInt64()
	case m.IsFloat64():
		var f float64
		f, err = m.ToFloat64()
		v = resp.Value{Kind: resp.Double, Str: []byte(formatDouble(f))}
	case m.IsMap():
		var pairs map[string]rueidis.RedisMessage
		pairs, err = m.ToMap()
		v.Kind = resp.Map
		for _, key := range slices.Sorted(maps.Keys(pairs)) {
			one := pairs[key]
			e, why := valueOf(&one)
			v.Elems, err = append(v.Elems, resp.Value{Kind: resp.Bulk, Str: []byte(key)}, e), errors.Join(err, why)
		}
	case m.IsArray():
		var elems []rueidis.RedisMessage
		elems, err = m.ToArray()
		v.Kind = resp.Array
		for i := range elems {
			e, why := valueOf(&elems[i])
			v.Elems, err = append(v.Elems, e), errors.Join(err, why)
		}
	default:
		var text string
		text, err = m.ToString()
		v = resp.Value{Kind: resp.Bulk, Str: []byte(text)}
	}
	return v, err
}

// formatDouble writes a number as Redis 7.0 does.
func formatDouble(f float64) string {
	if math.IsInf(f, 0) {
		return strings.ToLower(strings.TrimPrefix(strconv.FormatFloat(f, 'g', -1, 64), "+"))
	}
	return strconv.FormatFloat(f, 'g', 17, 64)
}

func flat(list []string, v *resp.Value) []string {
	switch {
	case v.Kind == resp.Int:
		list = append(list, strconv.FormatInt(v.Int, 10))
	case v.Kind == resp.Bulk, v.Kind == resp.Double:
		list = append(list, string(v.Str))
	}
	for i := range v.Elems {
		list = flat(list, &v.Elems[i])
	}
	return list
}
