package sqltable

import (
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// ParseURL reads what the parameters of a URL say about the table, over what opt says:
//
//	mysql://rt@127.0.0.1/rt5?preset=rt&lifetime=12h
//	postgres://app@db/app?table=sessions&id=sid&data=payload&expires=last_activity&expires_kind=last-access&lifetime=2h&codec=base64
//
// It returns the URL without them, and with the password that password_file names.
func ParseURL(u *url.URL, opt Options) (*url.URL, Options, error) {
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, opt, errors.New("store/sqltable: the parameters of the URL cannot be read")
	}
	if name := q.Get("preset"); q.Has("preset") {
		t, there := Presets[name]
		if !there {
			return nil, opt, fmt.Errorf("store/sqltable: there is no preset %q; the presets are: %s", name, strings.Join(slices.Sorted(maps.Keys(Presets)), ", "))
		}
		if t.Only != "" && t.Only != u.Scheme {
			return nil, opt, fmt.Errorf("store/sqltable: preset %q is for %s://", name, t.Only)
		}
		if opt.Table = t.Table; t.Postgres != nil && u.Scheme == "postgres" {
			t.Postgres(&opt.Table)
		}
		opt.Create = name == "sessile"
	}
	plain := *u
	plain.RawQuery = ""
	for _, name := range slices.Sorted(maps.Keys(q)) {
		values, set := q[name], parameters[name]
		if set == nil {
			return nil, opt, fmt.Errorf("store/sqltable: no parameter %q; the parameters are: %s", name, strings.Join(slices.Sorted(maps.Keys(parameters)), ", "))
		}
		if len(values) != 1 {
			return nil, opt, fmt.Errorf("store/sqltable: parameter %s is given %d times", name, len(values))
		}
		if err := set(&opt, &plain, values[0]); err != nil {
			return nil, opt, fmt.Errorf("store/sqltable: parameter %s=%q: %w", name, values[0], err)
		}
	}
	if strings.Trim(u.Path, "/") == "" || strings.Contains(strings.Trim(u.Path, "/"), "/") {
		return nil, opt, fmt.Errorf("store/sqltable: write %s://user@host/database", u.Scheme)
	}
	if opt.CAs != nil && opt.TLS != TLSVerified {
		return nil, opt, errors.New("store/sqltable: parameter ca_file goes with tls=true: otherwise any certificate counts")
	}
	if err := opt.Table.check(opt.Lifetime); err != nil {
		return nil, opt, fmt.Errorf("store/sqltable: %w", err)
	}
	return &plain, opt, nil
}

var parameters = map[string]func(opt *Options, u *url.URL, value string) error{
	"preset": func(*Options, *url.URL, string) error { return nil },
	"table":  func(o *Options, _ *url.URL, v string) error { o.Table.Name = v; return nil },
	"id":     func(o *Options, _ *url.URL, v string) error { o.Table.ID = v; return nil },
	"data":   func(o *Options, _ *url.URL, v string) error { o.Table.Data = v; return nil },
	"expires": func(o *Options, _ *url.URL, v string) error {
		o.Table.Time.Column = v
		return nil
	},
	"expires_kind": func(o *Options, _ *url.URL, v string) error {
		return choose(&o.Table.Time.Meaning, v, map[string]Meaning{"deadline": Deadline, "last-access": LastAccess, "created": Created})
	},
	"expires_unit": func(o *Options, _ *url.URL, v string) error {
		return choose(&o.Table.Time.Unit, v, map[string]Unit{"s": Seconds, "ms": Milliseconds, "timestamp": Timestamp, "utc": UTC, "digits": Digits})
	},
	"expires_since": func(o *Options, _ *url.URL, v string) error {
		o.Table.Time.Since = v
		return nil
	},
	"id_prefix": func(o *Options, _ *url.URL, v string) error { o.Table.Prefix = v; return nil },
	"id_hash": func(o *Options, _ *url.URL, v string) error {
		return choose(&o.Table.Hash, v, map[string]Hash{"none": NoHash, "sha256-hex": SHA256Hex, "sha256-base64url": SHA256Base64})
	},
	"codec": func(o *Options, _ *url.URL, v string) (err error) {
		o.Table.Codec, err = ParseCodec(v)
		return err
	},
	"lock": func(o *Options, _ *url.URL, v string) error {
		return choose(&o.Table.Lock.Kind, v, map[string]LockKind{"none": NoLock, "named": Named, "for-update": ForUpdate})
	},
	"lock_name": func(o *Options, _ *url.URL, v string) error { o.Table.Lock.Name = v; return nil },
	"lazy": func(o *Options, _ *url.URL, v string) (err error) {
		o.Table.Lazy, err = strconv.ParseBool(v)
		return err
	},
	"lifetime": func(o *Options, _ *url.URL, v string) (err error) {
		o.Lifetime, err = duration(v)
		return err
	},
	"op_bound": func(o *Options, _ *url.URL, v string) (err error) {
		if o.Bound, err = duration(v); err == nil && o.Bound < 100*time.Millisecond {
			err = errors.New("must be 100ms at the least")
		}
		return err
	},
	"max_value": func(o *Options, _ *url.URL, v string) error { return count(&o.MaxValue, v) },
	"max_locks": func(o *Options, _ *url.URL, v string) error { return count(&o.MaxLocks, v) },
	"max_conns": func(o *Options, _ *url.URL, v string) error { return count(&o.MaxConns, v) },
	"tls": func(o *Options, _ *url.URL, v string) error {
		return choose(&o.TLS, v, map[string]TLS{"preferred": TLSPreferred, "true": TLSVerified, "skip-verify": TLSUnverified, "false": TLSNever})
	},
	"ca_file": func(o *Options, _ *url.URL, v string) error {
		b, err := os.ReadFile(v)
		if err != nil {
			return errors.New("cannot be read")
		}
		if o.CAs = x509.NewCertPool(); !o.CAs.AppendCertsFromPEM(b) {
			return errors.New("has no certificate in it")
		}
		return nil
	},
	"password_file": func(_ *Options, u *url.URL, v string) error {
		b, err := os.ReadFile(v)
		if err != nil {
			return errors.New("cannot be read")
		}
		u.User = url.UserPassword(u.User.Username(), strings.TrimRight(string(b), "\r\n"))
		return nil
	},
}

func count(p *int, value string) (err error) {
	if *p, err = strconv.Atoi(value); err == nil && *p <= 0 {
		err = errors.New("must be a number above 0")
	}
	return err
}

func choose[T any](p *T, value string, from map[string]T) error {
	v, there := from[value]
	if !there || value == "" {
		names := slices.DeleteFunc(slices.Sorted(maps.Keys(from)), func(s string) bool { return s == "" })
		return fmt.Errorf("it takes one of: %s", strings.Join(names, ", "))
	}
	*p = v
	return nil
}

func duration(value string) (time.Duration, error) {
	if _, err := strconv.Atoi(value); err == nil {
		return 0, fmt.Errorf("which unit? for seconds write %ss", value)
	}
	d, err := time.ParseDuration(value)
	if err == nil && d <= 0 {
		err = errors.New("must be above 0")
	}
	return d, err
}
