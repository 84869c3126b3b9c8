package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/gin-gonic/gin"

	"github.com/sessile/sessile"
	"github.com/sessile/sessile/examples/frameworks/scenario"
	"github.com/sessile/sessile/store/memory"
)

func init() { gin.SetMode(gin.TestMode) }

func TestShop(t *testing.T) { scenario.Run(t, newShop) }

// However a handler of gin's answers, the cookie of what it has changed is in the header; and where it panics nothing is changed.
func TestWrap(t *testing.T) {
	sessions, err := sessile.New[visit](memory.New(memory.Options{}), sessile.Options{Cookie: sessile.Cookie{Insecure: true}})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		answer  func(c *gin.Context)
		status  int
		cookies int
	}{
		"nothing":         {func(*gin.Context) {}, http.StatusOK, 1},
		"a status":        {func(c *gin.Context) { c.Status(http.StatusTeapot) }, http.StatusTeapot, 1},
		"AbortWithStatus": {func(c *gin.Context) { c.AbortWithStatus(http.StatusTeapot) }, http.StatusTeapot, 1},
		"Write":           {func(c *gin.Context) { c.Writer.Write([]byte("x")) }, http.StatusOK, 1},
		"WriteString":     {func(c *gin.Context) { c.Writer.WriteString("x") }, http.StatusOK, 1},
		"JSON":            {func(c *gin.Context) { c.JSON(http.StatusTeapot, 1) }, http.StatusTeapot, 1},
		"Redirect":        {func(c *gin.Context) { c.Redirect(http.StatusSeeOther, "/x") }, http.StatusSeeOther, 1},
		"Flush":           {func(c *gin.Context) { c.Writer.Flush() }, http.StatusOK, 1},
		"Stream":          {func(c *gin.Context) { c.Stream(func(io.Writer) bool { return false }) }, http.StatusOK, 1},
		"its Flusher":     {func(c *gin.Context) { c.Writer.(http.Flusher).Flush() }, http.StatusOK, 1},
		"its controller":  {func(c *gin.Context) { http.NewResponseController(c.Writer).Flush() }, http.StatusOK, 1},
		"a panic":         {func(*gin.Context) { panic("here") }, http.StatusInternalServerError, 0},
		"Hijack":          {hijack, http.StatusOK, 1},
	} {
		t.Run(name, func(t *testing.T) {
			g := gin.New()
			g.Use(gin.RecoveryWithWriter(io.Discard), wrap(sessions.Handler))
			g.GET("/", func(ctx *gin.Context) {
				v, err := sessions.Get(ctx.Request)
				if err == nil {
					err = v.Update(func(v *visit) error { v.Cart = []string{"tea"}; return nil })
				}
				if err != nil {
					t.Error(err)
				}
				c.answer(ctx)
			})
			srv := httptest.NewServer(g)
			defer srv.Close()
			client := srv.Client()
			client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
			resp, err := client.Get(srv.URL)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != c.status || len(resp.Cookies()) != c.cookies {
				t.Errorf("%s, and cookies %v", resp.Status, resp.Cookies())
			}
		})
	}
}

// Where the middleware has answered by itself no handler is asked any more.
func TestWrapAborts(t *testing.T) {
	g := gin.New()
	g.Use(wrap(func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) })
	}))
	g.GET("/", func(*gin.Context) { t.Error("the handler is asked") })
	w := httptest.NewRecorder()
	if g.ServeHTTP(w, httptest.NewRequest("GET", "/", nil)); w.Code != http.StatusForbidden {
		t.Errorf("status %d", w.Code)
	}
}

// hijack answers on the connection itself, with the cookie that the session has set.
func hijack(c *gin.Context) {
	conn, _, err := c.Writer.Hijack()
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	io.WriteString(conn, "HTTP/1.1 200 OK\r\nSet-Cookie: "+c.Writer.Header().Get("Set-Cookie")+"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
}
