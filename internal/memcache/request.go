package memcache

// Op is what a request asks for.
type Op uint8

const (
	OpNone     Op = iota
	OpGet         // answered by AppendItem or AppendResult(NotFound) for each key, and AppendEnd
	OpGetTouch    // the same, and the deadline becomes Exptime
	OpDebug       // meta's me: as OpGet; what Item says of itself, without the value
	OpSet         // with HasCAS only where the item is there with that CAS: else Exists, or NotFound
	OpAdd         // else NotStored
	OpReplace     // else NotStored
	OpAppend      // else NotStored; the item's flags and deadline stay
	OpPrepend     // else NotStored; the item's flags and deadline stay
	OpDelete
	OpTouch
	OpIncr // answered by AppendNumber; the item's deadline stays
	OpDecr // not below 0
	OpFlush
	OpStats // Keys are the arguments; answered by any number of AppendStat and AppendEnd
	OpVersion
	OpVerbosity
	OpNoop
	OpQuit
	OpSASLList
	OpSASLAuth // the mechanism is the key, the client's word Value
	OpSASLStep
)

// Request is one request of a client. What a request does not have is zero.
//
// Its slices alias the buffer it was parsed from, and itself, until the next Parse; they are not to be changed.
type Request struct {
	Op      Op
	Keys    [][]byte // one where there is a key at all; any number in a get of the text protocol
	Value   []byte
	Flags   uint32
	Exptime int64 // see Deadline
	CAS     uint64
	HasCAS  bool // do it only to the item that has CAS; any operation that changes an item may have it

	Delta   uint64 // of incr and decr
	Initial uint64 // with Create
	Create  bool   // incr and decr make an item of Initial and Exptime where there is none

	// Quiet: noreply, a quiet opcode or meta's q. Each hides something else, and the Append methods know what.
	Quiet bool
	// Mute hides everything. No parser sets it: it is for who serves a client that takes any answer for the next one's.
	Mute bool

	form    form
	withCAS bool         // gets and gats
	tokens  [][]byte     // of the line; kept for the next one
	meta    [][]byte     // meta's flags
	rawKey  []byte       // meta's key as it was sent
	seen    [2]uint64    // which letters meta has
	decoded [MaxKey]byte // meta's key where it came in base64

	opcode byte
	opaque [4]byte
}

type form uint8

const (
	textForm form = iota
	metaForm
	binaryForm
)

func (r *Request) reset(f form) {
	*r = Request{form: f, tokens: r.tokens[:0]}
}

// IsBinary says by the first byte of a connection which parser is for all of it (negotiating_prot in memcached.c).
func IsBinary(first byte) bool { return first == requestMagic }

// WantsCAS reports whether the CAS of what is there is of use to the client.
func (r *Request) WantsCAS() bool { return r.form != textForm || r.withCAS }

// HasFlag reports whether a meta request has a flag. Those that mean something in a cache only are the business of who
// serves it: N and R (who may fill an item again), I (stale items).
func (r *Request) HasFlag(letter byte) bool {
	return letter < 128 && r.seen[letter/64]&(1<<(letter%64)) != 0
}
