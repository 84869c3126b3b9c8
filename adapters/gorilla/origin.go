package gorilla

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/gorilla/securecookie"

	"github.com/sessile/sessile"
	"github.com/sessile/sessile/store"
)

// Origin is where a site has its sessions that used boj/redistore or rbcervilla/redisstore, for sessile's Manager.Adopt: who is logged
// in with the old cookie stays so.
//
// name is the cookie's. codecs are boj/redistore's (securecookie.CodecsFromPairs of its keys; with SetMaxAge call MaxAge of each, too);
// none for rbcervilla/redisstore, whose cookies are ids without more. st has the old records: it is to be opened with their prefix, by
// default "session_" or "session:". The types in them have to be known to gob.Register.
//
// convert makes of the values what the session is to be with us, and returns who is logged in, "" for nobody. If its error matches
// store.ErrAbsent the old session is not taken over, and its visitor has none. Any other one is an error of Manager.Get, and so are
// values that cannot be read (store.ErrInvalid): a type that was forgotten must not log everybody out.
//
// Where the old cookie had a Path or a Domain set them in the Cookie of what is returned: it is the one that browsers are told to forget.
func Origin[T any](name string, codecs []securecookie.Codec, st store.Store, convert func(values map[any]any) (value T, user string, err error)) sessile.Origin[T] {
	return sessile.Origin[T]{
		ID: func(r *http.Request) string {
			value := cookieValue(r, name)
			switch {
			case len(codecs) > 0:
				return signedID(name, value, codecs)
			case plainID(value):
				return value
			}
			return ""
		},
		Load: func(ctx context.Context, id string) (*sessile.Adopted[T], error) {
			rec, err := st.Load(ctx, id)
			switch {
			case errors.Is(err, store.ErrAbsent), err == nil && !rec.Expires.IsZero() && !time.Now().Before(rec.Expires):
				return nil, nil
			case err != nil:
				return nil, fmt.Errorf("gorilla: load: %w", err)
			}
			values, err := Decode(rec.Data)
			if err != nil {
				return nil, err
			}
			var a sessile.Adopted[T]
			a.Value, a.User, err = convert(values)
			switch {
			case errors.Is(err, store.ErrAbsent):
				return nil, nil
			case err != nil:
				return nil, fmt.Errorf("gorilla: a session cannot be converted: %w", err)
			}
			return &a, nil
		},
		Delete: func(ctx context.Context, id string) error {
			if _, err := st.Delete(store.Replicated(ctx), id, store.Always); err != nil {
				return fmt.Errorf("gorilla: delete: %w", err)
			}
			return nil
		},
		Cookie: http.Cookie{Name: name, Path: "/"},
	}
}

// plainID reports whether id has the form of one that rbcervilla/redisstore has made (103 letters and digits), or a KeyGen of the site's
// own. That it is one of them nobody can know: that library takes any.
func plainID(id string) bool {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return len(id) >= 16 && len(id) <= 128 && strings.Trim(id, letters) == ""
}
