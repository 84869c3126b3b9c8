// Package param reads the parameters of a store's URL.
package param

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Read calls set's function of each parameter of q with its value. An error begins with the store's name and says which one it is: one that set
// does not have, one that is given more than once, or one whose function fails.
func Read(store string, q url.Values, set map[string]func(value string) error) error {
	for _, name := range slices.Sorted(maps.Keys(q)) {
		values := q[name]
		if set[name] == nil {
			return fmt.Errorf("%s: no parameter %q; the parameters are: %s", store, name, strings.Join(slices.Sorted(maps.Keys(set)), ", "))
		}
		if len(values) != 1 {
			return fmt.Errorf("%s: parameter %s is given %d times", store, name, len(values))
		}
		if err := set[name](values[0]); err != nil {
			return fmt.Errorf("%s: parameter %s=%q: %w", store, name, values[0], err)
		}
	}
	return nil
}

var errTooLittle = errors.New("must be more than 0")

// Duration takes a duration of more than 0.
func Duration(to *time.Duration) func(value string) error {
	return func(value string) (err error) {
		if *to, err = time.ParseDuration(value); err == nil && *to <= 0 {
			err = errTooLittle
		}
		return err
	}
}

// Count takes a number of more than 0.
func Count(to *int) func(value string) error {
	return func(value string) (err error) {
		if *to, err = strconv.Atoi(value); err == nil && *to <= 0 {
			err = errTooLittle
		}
		return err
	}
}
