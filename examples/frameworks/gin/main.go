// Gin is the shop of examples/shop with gin, its pages in JSON: a cart for everybody, a login that keeps it, the list of the devices on
// which one is logged in, and signing out on all of them.
//
//	go run ./gin -store redis://127.0.0.1:6379/0      or redis-sentinel://, redis-cluster://, mysql://, postgres:// ...
//
// It speaks plain HTTP, so its cookie is an insecure one. A real site leaves Cookie as it is.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"io"
	"log"
	"net"
	"net/http"
	"time"

	"github.com/gin-gonic/gin"

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
	g := gin.New()
	g.Use(gin.Recovery()) // before the sessions: a handler that panics has changed none
	g.Use(wrap(sessions.Handler))
	g.GET("/", s.page(s.home))
	g.GET("/events", s.page(s.events))
	g.POST("/cart", s.page(s.add))
	g.POST("/login", s.page(s.login))
	g.POST("/logout", s.page(s.logout))
	g.POST("/revoke", s.page(s.revoke))
	return g, nil
}

// wrap makes a middleware of gin of one of net/http.
func wrap(middleware func(http.Handler) http.Handler) gin.HandlerFunc {
	return func(c *gin.Context) {
		outer, passed := c.Writer, false
		defer func() { c.Writer = outer }() // also for what answers a panic
		middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			passed = true
			c.Writer, c.Request = writer{outer, w}, r
			c.Next()
		})).ServeHTTP(outer, c.Request)
		if !passed { // it has answered by itself: gin would go on
			c.Abort()
		}
	}
}

// A writer is gin's, where all that sends the header goes through that of the middleware. WriteHeader does not: gin only notes the status.
type writer struct {
	gin.ResponseWriter
	through http.ResponseWriter
}

func (w writer) Write(b []byte) (int, error)       { return w.through.Write(b) }
func (w writer) WriteString(s string) (int, error) { return io.WriteString(w.through, s) }
func (w writer) Unwrap() http.ResponseWriter       { return w.through }
func (w writer) Flush()                            { _ = http.NewResponseController(w.through).Flush() }
func (w writer) WriteHeaderNow() {
	w.through.WriteHeader(w.Status())
	w.ResponseWriter.WriteHeaderNow()
}
func (w writer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return http.NewResponseController(w.through).Hijack()
}

// page is a handler with the visitor's session. What cannot be done for want of the store is answered by 503, never by an empty cart.
func (s *shop) page(f func(c *gin.Context, v *sessile.Session[visit]) error) gin.HandlerFunc {
	return func(c *gin.Context) {
		v, err := s.sessions.Get(c.Request)
		if err == nil {
			err = f(c, v)
		}
		switch {
		case err == nil:
		case errors.Is(err, sessile.ErrGone): // logged out in another window
			c.Redirect(http.StatusSeeOther, "/")
		default:
			log.Print(c.Error(err))
			c.String(http.StatusServiceUnavailable, "Please try again in a moment.")
		}
	}
}

func (s *shop) home(c *gin.Context, v *sessile.Session[visit]) error {
	type device struct {
		Name string
		Here bool
		Key  sessile.Key // for /revoke
	}
	user, _ := v.User()
	var devices []device
	if user != "" {
		list, err := s.sessions.Sessions(c.Request.Context(), user)
		if err != nil {
			return err
		}
		for _, d := range list {
			devices = append(devices, device{d.Value.Device, d.Key == v.Key(), d.Key})
		}
	}
	c.JSON(http.StatusOK, gin.H{"user": user, "visit": v.Value(), "devices": devices})
	return nil
}

func (s *shop) add(c *gin.Context, v *sessile.Session[visit]) error {
	item := c.PostForm("item")
	if item == "" || len(item) > 100 {
		c.String(http.StatusBadRequest, "What shall it be?")
		return nil
	}
	// Two windows that add something at the same time both have it in the cart.
	if err := v.Update(func(v *visit) error { v.Cart = append(v.Cart, item); return nil }); err != nil {
		return err
	}
	c.Redirect(http.StatusSeeOther, "/")
	return nil
}

func (s *shop) login(c *gin.Context, v *sessile.Session[visit]) error {
	user, device := c.PostForm("user"), c.Request.UserAgent()
	if user == "" || c.PostForm("password") != "demo" { // a real site has users
		if err := v.Update(func(v *visit) error { v.Mistakes++; return nil }); err != nil {
			return err
		}
		c.AbortWithStatusJSON(http.StatusUnauthorized, gin.H{"message": "The password is demo."})
		return nil
	}
	if err := v.Update(func(v *visit) error { v.Device = device; return nil }); err != nil && !errors.Is(err, sessile.ErrGone) {
		return err
	}
	if err := v.Login(c.Request.Context(), user); err != nil {
		return err
	}
	c.Redirect(http.StatusSeeOther, "/")
	return nil
}

func (s *shop) logout(c *gin.Context, v *sessile.Session[visit]) error {
	if err := v.Logout(c.Request.Context()); err != nil {
		return err
	}
	c.Redirect(http.StatusSeeOther, "/")
	return nil
}

// revoke ends one session of the user, or all others.
func (s *shop) revoke(c *gin.Context, v *sessile.Session[visit]) (err error) {
	user, _ := v.User()
	if user == "" {
		c.AbortWithStatus(http.StatusUnauthorized)
		return nil
	}
	if key := c.PostForm("key"); key != "" {
		_, err = s.sessions.RevokeOnly(c.Request.Context(), user, sessile.Key(key))
	} else {
		_, err = s.sessions.Revoke(c.Request.Context(), user, v.Key())
	}
	if err != nil {
		return err
	}
	c.Redirect(http.StatusSeeOther, "/")
	return nil
}

// events is a stream. What is changed before it begins would be saved by its first Flush, but where that fails it should not begin.
func (s *shop) events(c *gin.Context, v *sessile.Session[visit]) error {
	if err := v.Update(func(v *visit) error { v.Streams++; return nil }); err != nil {
		return err
	}
	if err := v.Save(c.Request.Context()); err != nil {
		return err
	}
	c.Header("Content-Type", "text/event-stream")
	c.Writer.Flush()
	tick := time.Tick(time.Second)
	c.Stream(func(io.Writer) bool {
		select {
		case now := <-tick:
			c.SSEvent("time", now.Format(time.TimeOnly))
			return true
		case <-c.Request.Context().Done():
			return false
		}
	})
	return nil
}
