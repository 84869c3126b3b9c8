package cassandra

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"

	gocql "github.com/apache/cassandra-gocql-driver/v2"

	"github.com/sessile/sessile/internal/param"
)

// ParseURL reads
//
//	cassandra://user@h1,h2:9042/keyspace?table=sessions&id=sid&data=payload&datacenter=dc1
//	cassandra://h1/keyspace?preset=sessile
//
// Parameters, over what opt says:
//
//	table, id, data      the table and its columns, as they are written in quotes (sessions, id, data)
//	expires              a column of deadlines; without it the deadline is the TTL of the data
//	nonce                a column for a random text with each write of ours
//	preset               sessile: the table is ours, and made where it is not there
//	datacenter           the only one that is asked
//	consistency          LOCAL_QUORUM or, with SERIAL, QUORUM (the default), EACH_QUORUM, ALL
//	serial_consistency   LOCAL_SERIAL (the default), SERIAL
//	lifetime             of sessions that have no deadline
//	max_value            bytes of the largest session
//	tls, ca_file         true, skip-verify or false (the default); who has signed the nodes' certificates
//	server_name          for whom those are, where they are not for the nodes' addresses
//	cert_file, key_file  our certificate, and its key
//	password_file        holds the user's password
//	op_bound, dial_timeout, connections
func ParseURL(u *url.URL, opt Options) (Options, error) {
	q, err := url.ParseQuery(u.RawQuery)
	opt.Keyspace = strings.Trim(u.Path, "/")
	switch {
	case err != nil:
		return opt, errors.New("store/cassandra: the parameters of the URL cannot be read")
	case u.Fragment != "":
		return opt, errors.New("store/cassandra: the URL has a # part")
	case opt.Keyspace == "" || strings.Contains(opt.Keyspace, "/"):
		return opt, errors.New("store/cassandra: write cassandra://user@host,host:9042/keyspace")
	}
	if opt.Hosts, err = hosts(u.Host); err != nil {
		return opt, err
	}
	opt.Username = u.User.Username()
	opt.Password, _ = u.User.Password()
	text := func(to *string) func(string) error {
		return func(v string) error { *to = v; return nil }
	}
	level := func(to *gocql.Consistency, of ...gocql.Consistency) func(string) error {
		return func(v string) error {
			names := make([]string, len(of))
			for i, c := range of {
				if names[i] = c.String(); names[i] == v {
					*to = c
					return nil
				}
			}
			return fmt.Errorf("it takes one of: %s", strings.Join(names, ", "))
		}
	}
	var ca, serverName, cert, key string
	set := map[string]func(v string) error{
		"table": text(&opt.Table), "id": text(&opt.ID), "data": text(&opt.Data), "expires": text(&opt.Expires), "nonce": text(&opt.Nonce),
		"datacenter": text(&opt.Datacenter),
		"preset": func(v string) error {
			if v != "sessile" {
				return errors.New("the presets are: sessile")
			}
			opt.Create = true
			return nil
		},
		// One of fewer replicas would not see what a transaction has written.
		"consistency":        level(&opt.Consistency, gocql.LocalQuorum, gocql.Quorum, gocql.EachQuorum, gocql.All),
		"serial_consistency": level(&opt.Serial, gocql.LocalSerial, gocql.Serial),
		"lifetime":           param.Duration(&opt.Lifetime),
		"max_value":          param.Count(&opt.MaxValue),
		"op_bound":           param.Duration(&opt.Bound),
		"dial_timeout":       param.Duration(&opt.DialTimeout),
		"connections":        param.Count(&opt.Conns),
		"password_file": func(v string) error {
			b, err := os.ReadFile(v)
			if err != nil {
				return errors.New("cannot be read")
			}
			opt.Password = strings.TrimRight(string(b), "\r\n")
			return nil
		},
		"tls": func(v string) error {
			switch v {
			case "true", "skip-verify":
				opt.TLS = &tls.Config{InsecureSkipVerify: v != "true", MinVersion: tls.VersionTLS12}
			case "false":
			default:
				return errors.New("it takes one of: true, skip-verify, false")
			}
			return nil
		},
		"ca_file": text(&ca), "server_name": text(&serverName), "cert_file": text(&cert), "key_file": text(&key),
	}
	if err := param.Read("store/cassandra", q, set); err != nil {
		return opt, err
	}
	opt.TLS = opt.TLS.Clone() // it may be the caller's
	switch verified := opt.TLS != nil && !opt.TLS.InsecureSkipVerify; {
	case !verified && (q.Has("ca_file") || q.Has("server_name")):
		return opt, errors.New("store/cassandra: parameters ca_file and server_name go with tls=true: otherwise any certificate counts")
	case opt.TLS == nil && (q.Has("cert_file") || q.Has("key_file")):
		return opt, errors.New("store/cassandra: parameters cert_file and key_file go with tls=true or skip-verify")
	case serverName != "":
		opt.TLS.ServerName = serverName
	}
	if q.Has("ca_file") {
		b, err := os.ReadFile(ca)
		if opt.TLS.RootCAs = x509.NewCertPool(); err != nil || !opt.TLS.RootCAs.AppendCertsFromPEM(b) {
			return opt, fmt.Errorf("store/cassandra: parameter ca_file=%q: cannot be read, or has no certificate in it", ca)
		}
	}
	if q.Has("cert_file") || q.Has("key_file") {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return opt, fmt.Errorf("store/cassandra: parameters cert_file, key_file: %w", err)
		}
		opt.TLS.Certificates = []tls.Certificate{pair}
	}
	return opt, opt.complete()
}

// hosts reads h1,h2:9042: the last port is that of all who have none.
func hosts(list string) (all []string, err error) {
	port := "9042"
	names := strings.Split(list, ",")
	slices.Reverse(names)
	for _, n := range names {
		host, p, err := net.SplitHostPort(n)
		if err != nil {
			host, p = strings.Trim(n, "[]"), port
		} else if len(all) == 0 {
			port = p
		}
		if at, err := strconv.Atoi(p); err != nil || host == "" || at < 1 || at > 65535 {
			return nil, errors.New("store/cassandra: write cassandra://user@host,host:9042/keyspace")
		}
		all = append(all, net.JoinHostPort(host, p))
	}
	slices.Reverse(all)
	return all, nil
}
