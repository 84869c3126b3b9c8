// Package doctor says what is unsafe about the Redis servers in which sessions lie, and how to mend it.
//
// Look asks the servers, on small connections of its own and only to read; what they say are Facts. Judge makes
// findings of Facts, and asks nobody.
package doctor

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// Level says how bad a finding is.
type Level string

const (
	Danger  Level = "danger"  // sessions will be lost, or logouts undone, by what happens to every server some day
	Warning Level = "warning" // the same by what is rare, or there is less room than is good
	Unseen  Level = "unseen"  // it cannot be seen, and why
	OK      Level = "ok"
)

var levels = []Level{Danger, Warning, Unseen, OK}

func (l Level) rank() int { return slices.Index(levels, l) }

// A Finding is the outcome of one check.
type Finding struct {
	Level  Level    `json:"level"`
	Check  string   `json:"check"`            // its name, which stays the same from version to version
	What   string   `json:"what"`             // what was seen, in one line
	Why    string   `json:"why,omitempty"`    // what it means for sessions
	Remedy []string `json:"remedy,omitempty"` // commands for this server, or lines for its files
}

// Checks are the names of all checks.
var Checks = []string{
	// of any server
	"reach", "version", "eviction", "memory", "persistence", "saving", "clients", "timeout", "keepalive", "value-size", "clock", "open", "tls", "rights", "acl",
	// of one URL for one server
	"topology",
	// of primaries and replicas
	"replicas", "min-replicas", "backlog", "link", "read-only", "replica-memory",
	// of Sentinels
	"sentinels", "url", "ckquorum", "hosts", "strangers", "address", "roles", "agreement", "quorum", "lease", "down-after", "hold", "window", "failover-timeout",
	"stale", "priority", "down", "tilt",
	// of a Cluster
	"state", "slots", "view", "moving", "primaries", "nodes", "node-timeout", "full-coverage", "validity",
	// what cannot be seen as a whole
	"info", "config", "time", "cluster",
}

// A Subject is a server, or a set of them as a whole, and what was found about it.
type Subject struct {
	Name     string    `json:"name"` // its address; of a set, what it is called
	Role     string    `json:"role"` // primary, replica, sentinel; sentinels or cluster: the set
	Findings []Finding `json:"findings"`
}

func (s *Subject) add(level Level, check, what, why string, remedy ...string) {
	s.Findings = append(s.Findings, Finding{level, check, what, why, remedy})
}

func (s *Subject) ok(check, what string) { s.add(OK, check, what, "") }

// sorted puts the worst first; what is as bad stays in its order.
func sorted(subjects []Subject) []Subject {
	worst := func(s Subject) int {
		if len(s.Findings) == 0 {
			return len(levels)
		}
		return s.Findings[0].Level.rank()
	}
	for _, s := range subjects {
		slices.SortStableFunc(s.Findings, func(a, b Finding) int { return cmp.Compare(a.Level.rank(), b.Level.rank()) })
	}
	slices.SortStableFunc(subjects, func(a, b Subject) int { return cmp.Compare(worst(a), worst(b)) })
	return subjects
}

// Count returns how many findings of each level there are.
func Count(subjects []Subject) map[Level]int {
	n := map[Level]int{}
	for _, s := range subjects {
		for _, f := range s.Findings {
			n[f.Level]++
		}
	}
	return n
}

// Fields are names and values as Redis gives them in INFO, CONFIG GET and SENTINEL MASTER. nil: they cannot be seen.
type Fields map[string]string

func (f Fields) int(name string) int64 {
	n, _ := strconv.ParseInt(f[name], 10, 64) // 0 where it is missing
	return n
}

func (f Fields) has(name string) bool { _, ok := f[name]; return ok }

// lines reads name:value, line by line.
func lines(text string) Fields {
	f := Fields{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimRight(line, "\r\n"), ":"); ok {
			f[name] = value
		}
	}
	return f
}

// replicaLines returns those of a primary's INFO: ip=10.0.0.2,port=6379,state=online,offset=42,lag=0
func (f Fields) replicaLines() (list []Fields) {
	for i := range f.int("connected_slaves") {
		r := Fields{}
		for _, pair := range strings.Split(f["slave"+strconv.FormatInt(i, 10)], ",") {
			if name, value, ok := strings.Cut(pair, "="); ok {
				r[name] = value
			}
		}
		list = append(list, r)
	}
	return list
}
