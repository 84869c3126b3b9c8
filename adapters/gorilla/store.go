// Package gorilla keeps sessions of gorilla/sessions in any store of Sessile's, and reads those that boj/redistore and
// rbcervilla/redisstore have written.
//
//	sessions, err := gorilla.New(st, gorilla.Options{})
//	...
//	session, err := sessions.Get(r, "session")
//	session.Values["user"] = "alice"
//	err = session.Save(r, w)
//
// A program that uses gorilla/sessions stays as it is, but for the line that makes the store. What is different then:
//
//   - A save replaces what this request has loaded, and nothing else. A session that was destroyed meanwhile (a logout in another
//     tab) stays destroyed (ErrGone), and what another request has saved meanwhile is not overwritten (store.ErrConflict), but
//     merged where Options.Merge says how.
//   - A session that was not changed is only made to last longer when it is saved.
//   - A store that does not answer is an error, of Get and of Save: no new session takes the old one's place.
//   - An id that is not there is not taken over: what is saved then is a new session with a new id.
//   - A session whose ID is set to "" gets a new id when it is saved, and the old one ends: do so at a login.
package gorilla

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
	"weak"

	"github.com/gorilla/securecookie"
	"github.com/gorilla/sessions"

	"github.com/sessile/sessile/store"
)

// ErrGone: the session was destroyed while this request was using it. What the request has changed is dropped. It matches
// store.ErrConflict.
var ErrGone = fmt.Errorf("gorilla: %w: it was destroyed", store.ErrConflict)

// Options of a Store. The zero value of a field is its default.
type Options struct {
	// Session is what the Options of each session are at first. Its MaxAge is how many seconds after its last Save a session is
	// over: above 0 the cookie says so, too; at 0 the cookie goes with the browser, and Lifetime says it; below 0 Save destroys
	// the session. The default is path /, 30 days, Secure, HttpOnly and SameSite=Lax.
	Session *sessions.Options
	// Lifetime is how long a session with MaxAge 0 lies in the store after its last Save. The default is 20 minutes.
	Lifetime time.Duration
	// Serializer writes and reads values. The default is Gob.
	Serializer Serializer
	// Codecs are those that boj/redistore had (securecookie.CodecsFromPairs of the same keys): its cookies go on to be good, and it
	// understands those that are set from now on. Where there are some, st has to be opened with its prefix ("session_"), ids are
	// of its form, and lie in the store as they are. Processes that still use boj/redistore may run beside it, and save as they always
	// did: over what others have saved, and what they have destroyed.
	//
	// The default is none: a cookie is 160 random bits, and what is signed or encrypted about them makes them no harder to guess.
	// They lie in the store under a digest, so that no cookie can be made of what is seen there.
	Codecs []securecookie.Codec
	// Merge is asked when another request has saved the session since this one has loaded it: base is what was loaded, mine what is
	// to be saved, theirs what is there now; what it returns is saved, and it may keep and change theirs. Its error is returned by
	// Save. MergeKeys is one. The default is none: Save returns an error that matches store.ErrConflict.
	Merge func(base, mine, theirs map[any]any) (map[any]any, error)
	// Timeout bounds a Save. It does not end with the request: a logout must not depend on the client's staying connected. The
	// default is 3 s.
	Timeout time.Duration
}

// A Store keeps sessions of gorilla/sessions. It is safe for concurrent use; its sessions, as all of gorilla's, are not.
type Store struct {
	st  store.Store
	opt Options

	// states has what was loaded of a session, which has no room for it. An entry goes away with its session.
	states sync.Map // of weak.Pointer[sessions.Session] to *state
}

var _ sessions.Store = (*Store)(nil)

// A state is what is known of a session besides what gorilla knows.
type state struct {
	id, token string        // what it has in the store, and where there are no codecs what the browser has; "": nothing yet
	data      []byte        // what lies there as far as is known, for Values to be compared with
	version   store.Version // of data; Absent: it is not there, or cannot be read
	err       error         // the store has not said what is there
}

// New returns a store of sessions in st, which stays the caller's to close. It does not ask st.
func New(st store.Store, opt Options) (*Store, error) {
	if !st.Capabilities().Conditional {
		return nil, errors.New("gorilla: the store cannot write conditionally, so that a session that was destroyed could come back")
	}
	if opt.Session == nil {
		opt.Session = &sessions.Options{Path: "/", MaxAge: 30 * 24 * 60 * 60, Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode}
	}
	if opt.Lifetime == 0 {
		opt.Lifetime = 20 * time.Minute
	}
	if opt.Timeout == 0 {
		opt.Timeout = 3 * time.Second
	}
	if opt.Lifetime < time.Second || opt.Timeout < 0 {
		return nil, errors.New("gorilla: Lifetime is less than a second, or Timeout negative")
	}
	if opt.Serializer == nil {
		opt.Serializer = Gob
	}
	if len(opt.Codecs) > 0 {
		if _, err := securecookie.EncodeMulti("session", "", opt.Codecs...); err != nil {
			return nil, fmt.Errorf("gorilla: the codecs: %w", err)
		}
	}
	session := *opt.Session
	opt.Session = &session
	return &Store{st: st, opt: opt}, nil
}

// Get returns the request's session of that name, the same one whenever it is called for this request. See New.
func (s *Store) Get(r *http.Request, name string) (*sessions.Session, error) {
	return sessions.GetRegistry(r).Get(s, name)
}

// New loads the session that the request's cookie of that name is for: one round trip, and none where the cookie is not of the form
// of ours. Where there is none it is a new one (IsNew), which is stored when it is saved.
//
// The session that comes with an error is new and empty. After an outage (store.ErrUnavailable, store.ErrUnknown) it can be destroyed
// and not saved; after store.ErrInvalid, for values that cannot be read, it can be saved, under a new id.
func (s *Store) New(r *http.Request, name string) (*sessions.Session, error) {
	session := sessions.NewSession(s, name)
	options := *s.opt.Session
	session.Options, session.IsNew = &options, true
	is := s.know(session)
	id, token := s.named(r, name)
	if id == "" {
		return session, nil
	}
	rec, err := s.st.Load(r.Context(), id)
	switch {
	case errors.Is(err, store.ErrAbsent), err == nil && !rec.Expires.IsZero() && !time.Now().Before(rec.Expires):
		return session, nil
	case err != nil:
		is.id, is.err = id, fmt.Errorf("gorilla: load: %w", err)
		return session, is.err
	}
	is.id, is.token = id, token
	values, err := decode(s.opt.Serializer, rec.Data)
	if err != nil {
		return session, err
	}
	is.data, is.version = rec.Data, rec.Version()
	session.ID, session.Values, session.IsNew = id, values, false
	return session, nil
}

// know makes a state of session.
func (s *Store) know(session *sessions.Session) *state {
	is := new(state)
	key := weak.Make(session)
	if was, known := s.states.LoadOrStore(key, is); known {
		return was.(*state)
	}
	runtime.AddCleanup(session, func(key weak.Pointer[sessions.Session]) { s.states.Delete(key) }, key)
	return is
}

// Save saves session, or destroys it where Options.MaxAge is below 0, and sets its cookie. It has to come before the response begins.
//
// An error that matches store.ErrConflict says that another request was first: ErrGone that it has destroyed the session. One that
// matches store.ErrUnknown leaves open whether it is saved. The cookie stays as it is with any error.
func (s *Store) Save(r *http.Request, w http.ResponseWriter, session *sessions.Session) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), s.opt.Timeout)
	defer cancel()
	is := s.know(session)
	var cookie string
	var err error
	switch life := time.Duration(session.Options.MaxAge) * time.Second; {
	case life < 0:
		err = s.destroy(ctx, session, is)
	case life == 0:
		cookie, err = s.save(ctx, session, is, s.opt.Lifetime)
	default:
		cookie, err = s.save(ctx, session, is, life)
	}
	if err != nil {
		return err
	}
	h := w.Header() // saved twice, it has one cookie all the same
	h["Set-Cookie"] = slices.DeleteFunc(h["Set-Cookie"], func(line string) bool { return strings.HasPrefix(line, session.Name()+"=") })
	http.SetCookie(w, sessions.NewCookie(session.Name(), cookie, session.Options))
	return nil
}

// destroy also ends a session that could not be loaded.
func (s *Store) destroy(ctx context.Context, session *sessions.Session, is *state) error {
	if id := cmp.Or(is.id, session.ID); id != "" {
		if !s.validID(id) {
			return errForeign
		}
		if _, err := s.st.Delete(store.Replicated(ctx), id, store.Always); err != nil {
			return fmt.Errorf("gorilla: delete: %w", err)
		}
	}
	session.ID, *is = "", state{}
	return nil
}

var errForeign = fmt.Errorf("gorilla: %w: an id that is not this session's", store.ErrInvalid)

// save returns the value of the cookie.
func (s *Store) save(ctx context.Context, session *sessions.Session, is *state, life time.Duration) (cookie string, err error) {
	switch {
	case is.err != nil:
		return "", fmt.Errorf("gorilla: save: what there is is not known: %w", is.err)
	case session.ID == "":
		err = s.create(ctx, session, is, life)
	case session.ID != is.id || is.version == store.Absent:
		return "", errForeign
	default:
		err = s.replace(ctx, session, is, life)
	}
	if err != nil || len(s.opt.Codecs) == 0 {
		return is.token, err
	}
	cookie, err = securecookie.EncodeMulti(session.Name(), is.id, s.opt.Codecs...)
	if err != nil {
		return "", fmt.Errorf("gorilla: the codecs: %w", err)
	}
	return cookie, nil
}

const maxTries = 10

// create saves session under a new id, and ends the one that it was loaded from.
func (s *Store) create(ctx context.Context, session *sessions.Session, is *state, life time.Duration) error {
	for try := 0; ; try++ {
		data, err := encode(s.opt.Serializer, session.Values)
		if err != nil {
			return err
		}
		next := state{data: data, version: store.VersionOf(data, 0)}
		next.id, next.token = s.issue()
		err = s.st.Save(store.Replicated(ctx), next.id, store.Record{Data: data, Expires: time.Now().Add(life)}, store.IfAbsent)
		if errors.Is(err, store.ErrUnknown) {
			if there, lerr := s.st.Load(ctx, next.id); lerr == nil && there.Version() == next.version {
				err = nil
			}
		}
		if err != nil {
			return fmt.Errorf("gorilla: save: %w", err)
		}
		if is.version != store.Absent {
			existed, err := s.st.Delete(store.Replicated(ctx), is.id, store.IfVersion(is.version))
			if err == nil && !existed {
				err = ErrGone
			}
			if err != nil {
				_, _ = s.st.Delete(ctx, next.id, store.Always) // nobody was told of it; if not now, it ends by itself
				err = fmt.Errorf("gorilla: delete: %w", err)
				if !errors.Is(err, store.ErrConflict) || errors.Is(err, ErrGone) || try == maxTries {
					return err
				}
				if _, err := s.catchUp(ctx, session, is, store.Absent, err); err != nil {
					return err
				}
				continue
			}
		}
		session.ID, *is = next.id, next
		return nil
	}
}

// replace saves session in the place of what was loaded.
func (s *Store) replace(ctx context.Context, session *sessions.Session, is *state, life time.Duration) error {
	for try := 0; ; try++ {
		base, err := decode(s.opt.Serializer, is.data)
		if err != nil {
			return err
		}
		if reflect.DeepEqual(base, session.Values) { // nothing is written, so nothing of another request's can be lost
			err := s.st.Touch(ctx, is.id, time.Now().Add(life))
			if errors.Is(err, store.ErrAbsent) {
				return ErrGone
			}
			if err != nil {
				return fmt.Errorf("gorilla: touch: %w", err)
			}
			return nil
		}
		data, err := encode(s.opt.Serializer, session.Values)
		if err != nil {
			return err
		}
		tried := store.VersionOf(data, 0)
		err = s.st.Save(ctx, is.id, store.Record{Data: data, Expires: time.Now().Add(life)}, store.IfVersion(is.version))
		if err == nil {
			is.data, is.version = data, tried
			return nil
		}
		err = fmt.Errorf("gorilla: save: %w", err)
		if !errors.Is(err, store.ErrConflict) && !errors.Is(err, store.ErrUnknown) || try == maxTries {
			return err
		}
		if saved, err := s.catchUp(ctx, session, is, tried, err); saved || err != nil {
			return err
		}
	}
}

// catchUp reads what is there, after a save that has failed with because. It merges the values with it, so that they can be saved
// again, or finds that they were saved, as the version that was tried.
func (s *Store) catchUp(ctx context.Context, session *sessions.Session, is *state, tried store.Version, because error) (saved bool, err error) {
	there, err := s.st.Load(ctx, is.id)
	switch {
	case errors.Is(err, store.ErrAbsent):
		return false, ErrGone
	case err != nil:
		return false, errors.Join(because, err)
	case there.Version() == tried:
		is.data, is.version = there.Data, tried
		return true, nil
	case s.opt.Merge == nil:
		return false, because
	}
	base, err := decode(s.opt.Serializer, is.data)
	if err != nil {
		return false, err
	}
	theirs, err := decode(s.opt.Serializer, there.Data)
	if err != nil {
		return false, err
	}
	merged, err := s.opt.Merge(base, session.Values, theirs)
	if err != nil {
		return false, fmt.Errorf("gorilla: merge: %w", err)
	}
	session.Values, is.data, is.version = merged, there.Data, there.Version()
	return false, nil
}

// MergeKeys is a Merge that keeps what either request has changed, key by key. Where both have changed the same key, and not to the
// same, it is an error that matches store.ErrConflict.
func MergeKeys(base, mine, theirs map[any]any) (map[any]any, error) {
	same := func(a, b map[any]any, key any) bool {
		x, has := a[key]
		y, too := b[key]
		return has == too && reflect.DeepEqual(x, y)
	}
	for _, of := range []map[any]any{base, mine} {
		for key := range of {
			switch value, has := mine[key]; {
			case same(mine, base, key) || same(mine, theirs, key):
			case !same(theirs, base, key):
				return nil, fmt.Errorf("%w: both have changed one key", store.ErrConflict)
			case has:
				theirs[key] = value
			default:
				delete(theirs, key)
			}
		}
	}
	return theirs, nil
}

// named returns what a request's cookie stands for; "" where there is none, or none that counts.
func (s *Store) named(r *http.Request, name string) (id, token string) {
	value := cookieValue(r, name)
	if len(s.opt.Codecs) > 0 {
		return signedID(name, value, s.opt.Codecs), ""
	}
	if !validToken(value) {
		return "", ""
	}
	return digest(value), value
}

// cookieValue returns the value of the cookie of that name. Of two that differ none counts: one of them was put there by somebody else
// (another host below the same domain), and nobody knows which.
func cookieValue(r *http.Request, name string) (value string) {
	for i, c := range r.CookiesNamed(name) {
		if i > 0 && c.Value != value {
			return ""
		}
		value = c.Value
	}
	return value
}

// signedID returns the id in a cookie of boj/redistore, "" where none of the codecs has made it.
func signedID(name, value string, codecs []securecookie.Codec) (id string) {
	if value == "" || securecookie.DecodeMulti(name, value, &id, codecs...) != nil || !validSignedID(id) {
		return "" // an old key, an old cookie, somebody's invention: a new session, not an error that only new cookies would end
	}
	return id
}

// issue makes a new id, and where there are no codecs the token for it.
func (s *Store) issue() (id, token string) {
	if len(s.opt.Codecs) > 0 {
		var b [signedIDBytes]byte
		rand.Read(b[:]) // never fails: it ends the program (crypto/rand)
		return signedIDs.EncodeToString(b[:]), ""
	}
	var b [tokenBytes]byte
	rand.Read(b[:])
	token = tokens.EncodeToString(b[:])
	return digest(token), token
}

func (s *Store) validID(id string) bool {
	if len(s.opt.Codecs) > 0 {
		return validSignedID(id)
	}
	b, err := ids.DecodeString(id)
	return err == nil && len(b) == tokenBytes
}

// tokenBytes are random: 160 bits (ASVS 7.2.3 and NIST SP 800-63B-4, 5.1, ask for 64 and more).
const tokenBytes = 20

var (
	tokens = base64.RawURLEncoding.Strict()
	// ids have letters that every store takes: no file name and no table without upper and lower case has to be thought of.
	ids = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)
)

func validToken(t string) bool {
	if len(t) != tokens.EncodedLen(tokenBytes) || strings.ContainsAny(t, "\r\n") { // which base64 skips
		return false
	}
	_, err := tokens.DecodeString(t)
	return err == nil
}

// digest is the id of a token.
func digest(token string) string {
	sum := sha256.Sum256([]byte("gorilla session\x00" + token))
	return ids.EncodeToString(sum[:tokenBytes])
}

// signedIDBytes is what boj/redistore's ids are made of.
const signedIDBytes = 32

var signedIDs = base32.StdEncoding.WithPadding(base32.NoPadding)

func validSignedID(id string) bool {
	if len(id) != signedIDs.EncodedLen(signedIDBytes) || strings.ContainsAny(id, "\r\n") { // which base32 skips
		return false
	}
	_, err := signedIDs.DecodeString(id)
	return err == nil
}
