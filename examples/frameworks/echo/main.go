// Echo is the shop of examples/shop with echo, its pages in JSON: a cart for everybody, a login that keeps it, the list of the devices on
// which one is logged in, and signing out on all of them.
//
//	go run ./echo -store redis://127.0.0.1:6379/0      or redis-sentinel://, redis-cluster://, mysql://, postgres:// ...
//
// It speaks plain HTTP, so its cookie is an insecure one. A real site leaves Cookie as it is.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/labstack/echo/v4/middleware"

	"github.com/sessile/sessile"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/open"
)

// visit is what the site keeps of a visitor.
type visit struct {
	Cart     []string
	Device   string // on which he has logged in
	Mistakes int    // passwords that were none
	Streams  int    // that he has opened
}

type shop struct{ sessions *sessile.Manager[visit] }

func main() {
	addr := flag.String("listen", "127.0.0.1:8080", "`address` to listen on")
	where := flag.String("store", "memory://", "`URL` of the store of the sessions")
	flag.Parse()
	u, err := open.Parse(*where)
	if err != nil {
		log.Fatal(err)
	}
	st, err := open.Store(context.Background(), u, open.Options{Prefix: "shop:", Lifetime: 12 * time.Hour})
	if err != nil {
		log.Fatal(err)
	}
	defer st.Close()
	handler, err := newShop(st)
	if err != nil {
		log.Fatal(err)
	}
	log.Print("http://", *addr)
	log.Fatal(http.ListenAndServe(*addr, handler))
}

func newShop(st store.Store) (http.Handler, error) {
	sessions, err := sessile.New[visit](st, sessile.Options{Cookie: sessile.Cookie{Insecure: true}})
	if err != nil {
		return nil, err
	}
	s := &shop{sessions}
	e := echo.New()
	e.HTTPErrorHandler = s.failed
	e.Use(middleware.Recover())
	// The Response of a request writes through its session from here on, and what answers an error does, too.
	e.Use(echo.WrapMiddleware(sessions.Handler))
	e.GET("/", s.page(s.home))
	e.GET("/events", s.page(s.events))
	e.POST("/cart", s.page(s.add))
	e.POST("/login", s.page(s.login))
	e.POST("/logout", s.page(s.logout))
	e.POST("/revoke", s.page(s.revoke))
	return e, nil
}

// page is a handler with the visitor's session.
func (s *shop) page(f func(c echo.Context, v *sessile.Session[visit]) error) echo.HandlerFunc {
	return func(c echo.Context) error {
		v, err := s.sessions.Get(c.Request())
		if err != nil {
			return err
		}
		return f(c, v)
	}
}

// failed answers errors. What cannot be done for want of the store is answered by 503, never by an empty cart.
func (s *shop) failed(err error, c echo.Context) {
	var answer *echo.HTTPError
	switch {
	case errors.Is(err, sessile.ErrGone): // logged out in another window
		err = c.Redirect(http.StatusSeeOther, "/")
	case errors.As(err, &answer):
		c.Echo().DefaultHTTPErrorHandler(err, c)
		return
	case !c.Response().Committed:
		log.Print(err)
		err = c.String(http.StatusServiceUnavailable, "Please try again in a moment.")
	}
	if err != nil {
		log.Print(err)
	}
}

func (s *shop) home(c echo.Context, v *sessile.Session[visit]) error {
	type device struct {
		Name string
		Here bool
		Key  sessile.Key // for /revoke
	}
	user, _ := v.User()
	var devices []device
	if user != "" {
		list, err := s.sessions.Sessions(c.Request().Context(), user)
		if err != nil {
			return err
		}
		for _, d := range list {
			devices = append(devices, device{d.Value.Device, d.Key == v.Key(), d.Key})
		}
	}
	return c.JSON(http.StatusOK, echo.Map{"user": user, "visit": v.Value(), "devices": devices})
}

func (s *shop) add(c echo.Context, v *sessile.Session[visit]) error {
	item := c.FormValue("item")
	if item == "" || len(item) > 100 {
		return echo.NewHTTPError(http.StatusBadRequest, "What shall it be?")
	}
	// Two windows that add something at the same time both have it in the cart.
	if err := v.Update(func(v *visit) error { v.Cart = append(v.Cart, item); return nil }); err != nil {
		return err
	}
	return c.Redirect(http.StatusSeeOther, "/")
}

func (s *shop) login(c echo.Context, v *sessile.Session[visit]) error {
	user, device := c.FormValue("user"), c.Request().UserAgent()
	if user == "" || c.FormValue("password") != "demo" { // a real site has users
		if err := v.Update(func(v *visit) error { v.Mistakes++; return nil }); err != nil {
			return err
		}
		return echo.NewHTTPError(http.StatusUnauthorized, "The password is demo.")
	}
	if err := v.Update(func(v *visit) error { v.Device = device; return nil }); err != nil && !errors.Is(err, sessile.ErrGone) {
		return err
	}
	if err := v.Login(c.Request().Context(), user); err != nil {
		return err
	}
	return c.Redirect(http.StatusSeeOther, "/")
}

func (s *shop) logout(c echo.Context, v *sessile.Session[visit]) error {
	if err := v.Logout(c.Request().Context()); err != nil {
		return err
	}
	return c.Redirect(http.StatusSeeOther, "/")
}

// revoke ends one session of the user, or all others.
func (s *shop) revoke(c echo.Context, v *sessile.Session[visit]) (err error) {
	user, _ := v.User()
	if user == "" {
		return echo.NewHTTPError(http.StatusUnauthorized, "Who are you?")
	}
	if key := c.FormValue("key"); key != "" {
		_, err = s.sessions.RevokeOnly(c.Request().Context(), user, sessile.Key(key))
	} else {
		_, err = s.sessions.Revoke(c.Request().Context(), user, v.Key())
	}
	if err != nil {
		return err
	}
	return c.Redirect(http.StatusSeeOther, "/")
}

// events is a stream. What is changed before it begins would be saved by its first Flush, but where that fails it should not begin.
func (s *shop) events(c echo.Context, v *sessile.Session[visit]) error {
	if err := v.Update(func(v *visit) error { v.Streams++; return nil }); err != nil {
		return err
	}
	if err := v.Save(c.Request().Context()); err != nil {
		return err
	}
	w := c.Response()
	w.Header().Set(echo.HeaderContentType, "text/event-stream")
	w.WriteHeader(http.StatusOK) // echo does not know that Flush does it
	for tick := time.Tick(time.Second); ; {
		w.Flush()
		select {
		case now := <-tick:
			fmt.Fprintf(w, "event: time\ndata: %s\n\n", now.Format(time.TimeOnly))
		case <-c.Request().Context().Done():
			return nil
		}
	}
}
