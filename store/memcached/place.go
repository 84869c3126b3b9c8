package memcached

import (
	"cmp"
	"crypto/md5"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
	"sort"
	"strconv"
)

// memcached servers know nothing of each other. On which of them a session lies is computed by the client, from the session's
// id and from the servers as they are named in its settings; and whoever computes otherwise finds nothing. So this file does what
// the two PHP extensions do, and TestPlaces asks them.

// A Client is who wrote the sessions: a session handler of PHP, or a site's own. It says what the names of session and lock are, how the lock is
// held, and where both lie.
type Client string

const (
	// PHPMemcached is session.save_handler=memcached (php-memcached, which is libmemcached).
	PHPMemcached Client = "php-memcached"
	// PHPMemcache is session.save_handler=memcache (php-memcache).
	PHPMemcache Client = "php-memcache"
	// Object is a handler of a site's own that uses an object of class Memcached (php-memcached), a string for each session. It has
	// its own locks, or none: they are not in this store.
	Object Client = "memcached-object"
)

// A Distribution is how a client chooses a session's server.
type Distribution string

const (
	// Ketama is php-memcached's default: memcached.sess_consistent_hash=1, sess_consistent_hash_type=ketama.
	Ketama Distribution = "ketama"
	// KetamaWeighted is sess_consistent_hash_type=ketama_weighted, and what php-memcached up to 2 does.
	KetamaWeighted Distribution = "ketama_weighted"
	// Modula is memcached.sess_consistent_hash=0, and the default of objects.
	Modula Distribution = "modula"
	// Consistent is php-memcache's default, memcache.hash_strategy=consistent.
	Consistent Distribution = "consistent"
	// Standard is memcache.hash_strategy=standard.
	Standard Distribution = "standard"
)

// A Hash is php-memcache's memcache.hash_function.
type Hash string

const (
	CRC32 Hash = "crc32" // the default
	FNV   Hash = "fnv"
)

// places returns where something lies, by its name without the prefix: the first is the server that is asked, the others have copies.
type places func(name string) []int

// place returns how the client chooses servers.
func place(o *Options) places {
	n := len(o.Servers)
	var server func(name string) int
	switch o.Distribution {
	case Ketama:
		server = newRing(ketama(o.Servers)).find(oneAtATime)
	case KetamaWeighted:
		server = newRing(ketamaWeighted(o.Servers)).find(func(name string) uint32 { return md5Part(name, 0) })
	case Modula:
		server = func(name string) int { return int(oneAtATime(name) % uint32(n)) }
	case Consistent:
		server = consistent(o.Servers, o.Hash.sum)
	case Standard:
		server = standard(o.Servers, o.Hash.sum)
	}
	if o.Client != PHPMemcache {
		return func(name string) []int {
			if o.Client == Object {
				name = o.Prefix + name // part of the key that the handler asks for
			}
			first := 0
			if n > 1 {
				first = server(name)
			}
			all := make([]int, o.Copies)
			for i := range all { // libmemcached's replicas
				all[i] = (first + i) % n
			}
			return all
		}
	}
	return func(name string) (all []int) {
		name = o.Prefix + name // which php-memcached puts there only behind the choice
		// The handler appends numbers until it has servers enough. It has no limit.
		for i := 0; len(all) < o.Copies && i < 1000; i++ {
			next := 0
			if n > 1 {
				next = server(name + "-" + strconv.Itoa(i))
			}
			if !slices.Contains(all, next) {
				all = append(all, next)
			}
		}
		return all
	}
}

// A point is where an arc of a ring ends, all of which belongs to one server.
type point struct {
	at     uint32
	server int
}

type ring []point

func newRing(r ring) ring {
	slices.SortFunc(r, func(a, b point) int { return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.server, b.server)) })
	return r
}

// at returns the server of the arc that hash lies on.
func (r ring) at(hash uint32) int {
	i := sort.Search(len(r), func(i int) bool { return r[i].at >= hash })
	return r[i%len(r)].server
}

func (r ring) find(hash func(string) uint32) func(string) int {
	return func(name string) int { return r.at(hash(name)) }
}

// ringName is what libmemcached calls a server.
func (s *Server) ringName() string {
	if s.Port == 11211 {
		return s.Host
	}
	return s.Host + ":" + strconv.Itoa(s.Port)
}

// ketama has 100 points for each server, whatever its weight.
func ketama(servers []Server) (r ring) {
	for i := range servers {
		for k := range 100 {
			r = append(r, point{oneAtATime(fmt.Sprintf("%s-%d", servers[i].ringName(), k)), i})
		}
	}
	return r
}

// ketamaWeighted has 160 points for a server of mean weight, four of each digest.
func ketamaWeighted(servers []Server) (r ring) {
	total := 0
	for i := range servers {
		total += servers[i].Weight
	}
	for i := range servers {
		share := float32(servers[i].Weight) / float32(total) // a float in C, whose rounding decides
		digests := int(share*160/4*float32(len(servers)) + 0.0000000001)
		for k := range digests {
			for part := range 4 {
				r = append(r, point{md5Part(fmt.Sprintf("%s-%d", servers[i].ringName(), k), part), i})
			}
		}
	}
	return r
}

// oneAtATime is Jenkins' hash, libmemcached's default. A char is signed there.
func oneAtATime(s string) (h uint32) {
	for i := range len(s) {
		h += uint32(int8(s[i]))
		h += h << 10
		h ^= h >> 6
	}
	h += h << 3
	h ^= h >> 11
	return h + h<<15
}

func md5Part(s string, part int) uint32 {
	sum := md5.Sum([]byte(s))
	return binary.LittleEndian.Uint32(sum[4*part:])
}

// sum is the hash as php-memcache computes it. A char is signed there, too.
func (h Hash) sum(s string) uint32 {
	if h == CRC32 {
		return crc32.ChecksumIEEE([]byte(s))
	}
	sum := uint32(0x811c9dc5)
	for i := range len(s) {
		sum = (sum ^ uint32(int8(s[i]))) * 0x01000193
	}
	return sum
}

// peclName is what php-memcache calls a server.
func (s *Server) peclName() string {
	if s.Port == 0 {
		return "unix://" + s.Host + ":0"
	}
	return s.Host + ":" + strconv.Itoa(s.Port)
}

// consistent is a ring of 160 points for each unit of weight, of which 1024 buckets are made.
func consistent(servers []Server, sum func(string) uint32) func(string) int {
	const buckets = 1024
	var r ring
	for i := range servers {
		for k := range 160 * servers[i].Weight {
			r = append(r, point{sum(fmt.Sprintf("%s-%d", servers[i].peclName(), k)), i})
		}
	}
	r = newRing(r)
	var table [buckets]int
	for i := range table {
		table[i] = r.at(uint32(i) * (0xffffffff / buckets))
	}
	return func(name string) int { return table[sum(name)%buckets] }
}

// standard has a bucket for each unit of weight.
func standard(servers []Server, sum func(string) uint32) func(string) int {
	var buckets []int
	for i := range servers {
		for range servers[i].Weight {
			buckets = append(buckets, i)
		}
	}
	return func(name string) int {
		return buckets[max(sum(name)>>16&0x7fff, 1)%uint32(len(buckets))]
	}
}
