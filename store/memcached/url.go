package memcached

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"

	"github.com/sessile/sessile/internal/param"
)

// ParseURL reads
//
//	memcached://h1:11211,h2:11211?client=php-memcached
//	memcached+unix:///run/memcached/a.sock,/run/memcached/b.sock?client=php-memcache
//
// with the servers named and ordered as in session.save_path. Parameters, over what opt says:
//
//	client        php-memcached (the default) or php-memcache: whose session handler wrote the sessions; memcached-object: one of
//	              the site's own
//	distribution  of php-memcached: ketama (the default; memcached.sess_consistent_hash_type), ketama_weighted, or modula
//	              (memcached.sess_consistent_hash=0; the default of memcached-object); of php-memcache: consistent (the default; memcache.hash_strategy), standard
//	hash          of php-memcache: crc32 (the default; memcache.hash_function), fnv
//	weights       1,2,1: of each server
//	copies        on how many servers a session lies: 1 + memcached.sess_number_of_replicas, or memcache.session_redundancy
//	prefix        memcached.sess_prefix or memcache.session_prefix_static_key; the default is the client's
//	lifetime      of sessions that have no deadline, and how long sessions are waited for that cannot be listed
//	listed        false: the servers forbid `lru_crawler metadump`
//	max_value     bytes of the largest session
//	timeout, dial_timeout, connections
func ParseURL(u *url.URL, opt Options) (Options, error) {
	q, err := url.ParseQuery(u.RawQuery)
	switch {
	case err != nil:
		return opt, errors.New("store/memcached: the parameters of the URL cannot be read")
	case u.User != nil:
		return opt, errors.New("store/memcached: servers that ask for a user are not supported")
	case u.Fragment != "":
		return opt, errors.New("store/memcached: the URL has a # part")
	}
	if opt.Servers, err = parseServers(u); err != nil {
		return opt, err
	}
	if opt.Client = Client(q.Get("client")); (opt.Client == "" || opt.Client == PHPMemcached) && !q.Has("prefix") {
		opt.Prefix = "memc.sess.key."
	}
	set := map[string]func(v string) error{
		"client":       func(string) error { return nil },
		"distribution": func(v string) error { opt.Distribution = Distribution(v); return nil },
		"hash":         func(v string) error { opt.Hash = Hash(v); return nil },
		"prefix":       func(v string) error { opt.Prefix = v; return nil },
		"copies":       param.Count(&opt.Copies),
		"weights": func(v string) error {
			weights := strings.Split(v, ",")
			if len(weights) != len(opt.Servers) {
				return fmt.Errorf("there are %d servers", len(opt.Servers))
			}
			for i, w := range weights {
				if err := param.Count(&opt.Servers[i].Weight)(w); err != nil {
					return err
				}
			}
			return nil
		},
		"lifetime": param.Duration(&opt.Lifetime),
		"listed": func(v string) error {
			listed, err := strconv.ParseBool(v)
			opt.Unlisted = !listed
			return err
		},
		"max_value":    param.Count(&opt.MaxValue),
		"timeout":      param.Duration(&opt.Timeout),
		"dial_timeout": param.Duration(&opt.DialTimeout),
		"connections":  param.Count(&opt.MaxConns),
	}
	if err := param.Read("store/memcached", q, set); err != nil {
		return opt, err
	}
	return opt, opt.complete()
}

func parseServers(u *url.URL) (all []Server, err error) {
	wrong := errors.New("store/memcached: write memcached://host:port,host:port or memcached+unix:///path,/path")
	if u.Scheme == "memcached+unix" {
		for _, path := range strings.Split(u.Path, ",") {
			if u.Host != "" || !strings.HasPrefix(path, "/") {
				return nil, wrong
			}
			all = append(all, Server{Host: path})
		}
		return all, nil
	}
	if strings.Trim(u.Path, "/") != "" || u.Host == "" {
		return nil, wrong
	}
	for _, addr := range strings.Split(u.Host, ",") {
		host, port, err := net.SplitHostPort(addr)
		if err != nil { // no port
			host, port = strings.Trim(addr, "[]"), "11211"
		}
		n, err := strconv.Atoi(port)
		if err != nil || host == "" || n < 1 {
			return nil, wrong
		}
		all = append(all, Server{Host: host, Port: n})
	}
	return all, nil
}
