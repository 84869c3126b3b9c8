// Command scs is alexedwards/scs with one of its stores, asked for a page by a real HTTP request: see testapp.go.
package main

import (
	"bufio"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/alexedwards/scs/mysqlstore"
	"github.com/alexedwards/scs/pgxstore"
	"github.com/alexedwards/scs/v2"
	"github.com/go-sql-driver/mysql"
	"github.com/gomodule/redigo/redis"
	"github.com/jackc/pgx/v5/pgxpool"
)

// The tables are those of the stores' documentation.
const (
	inMySQL    = "CREATE TABLE sessions (token CHAR(43) PRIMARY KEY, data BLOB NOT NULL, expiry TIMESTAMP(6) NOT NULL)"
	inPostgres = "CREATE TABLE sessions (token TEXT PRIMARY KEY, data BYTEA NOT NULL, expiry TIMESTAMPTZ NOT NULL)"
)

type app struct {
	sessions *scs.SessionManager
	create   func() error
	collect  func() // until it is done
}

func open(raw string) (*app, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, err
	}
	a := &app{sessions: scs.New()}
	// A store collects by itself, and when it likes: one that lives for a while does it.
	const every = 50 * time.Millisecond
	while := func(collector interface{ StopCleanup() }) {
		time.Sleep(3 * every)
		collector.StopCleanup()
	}
	switch u.Scheme {
	case "redis":
		a.sessions.Store = inRedis{&redis.Pool{Dial: func() (redis.Conn, error) { return redis.Dial("tcp", u.Host) }}}
	case "mysql":
		cfg := mysql.NewConfig()
		cfg.Net, cfg.Addr, cfg.User, cfg.DBName, cfg.ParseTime = "tcp", u.Host, u.User.Username(), u.Path[1:], true
		db, err := sql.Open("mysql", cfg.FormatDSN())
		if err != nil {
			return nil, err
		}
		a.create = func() error { _, err := db.Exec(inMySQL); return err }
		a.collect = func() { while(mysqlstore.NewWithCleanupInterval(db, every)) }
		a.sessions.Store = mysqlstore.NewWithCleanupInterval(db, 0)
	default:
		pool, err := pgxpool.New(context.Background(), raw)
		if err != nil {
			return nil, err
		}
		a.create = func() error { _, err := pool.Exec(context.Background(), inPostgres); return err }
		a.collect = func() { while(pgxstore.NewWithCleanupInterval(pool, every)) }
		a.sessions.Store = pgxstore.NewWithCleanupInterval(pool, 0)
	}
	return a, nil
}

// inRedis keeps sessions where and as redisstore does; that itself is no module that the module proxy has.
type inRedis struct{ pool *redis.Pool }

const prefix = "scs:session:"

func (r inRedis) Find(token string) ([]byte, bool, error) {
	c := r.pool.Get()
	defer c.Close()
	b, err := redis.Bytes(c.Do("GET", prefix+token))
	if errors.Is(err, redis.ErrNil) {
		return nil, false, nil
	}
	return b, err == nil, err
}

func (r inRedis) Commit(token string, b []byte, expiry time.Time) error {
	c := r.pool.Get()
	defer c.Close()
	_, err := c.Do("SET", prefix+token, b, "PX", time.Until(expiry).Milliseconds())
	return err
}

func (r inRedis) Delete(token string) error {
	c := r.pool.Get()
	defer c.Close()
	_, err := c.Do("DEL", prefix+token)
	return err
}

type step struct {
	Do, ID, Text string
	Life         int
}

// ServeHTTP is a page.
func (a *app) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var s step
	if err := json.NewDecoder(r.Body).Decode(&s); err != nil {
		panic(err)
	}
	if s.Do == "destroy" {
		if err := a.sessions.Destroy(r.Context()); err != nil {
			panic(err)
		}
		return
	}
	a.sessions.SetDeadline(r.Context(), time.Now().Add(time.Duration(s.Life)*time.Second))
	a.sessions.Put(r.Context(), "at", time.Now().Unix())
	if s.Text != "" {
		a.sessions.Put(r.Context(), "text", s.Text)
	}
}

func (a *app) page(s step) error {
	body, _ := json.Marshal(s)
	r := httptest.NewRequest("POST", "/", strings.NewReader(string(body)))
	r.AddCookie(&http.Cookie{Name: a.sessions.Cookie.Name, Value: s.ID})
	w := httptest.NewRecorder()
	failed := error(nil)
	a.sessions.ErrorFunc = func(_ http.ResponseWriter, _ *http.Request, err error) { failed = err }
	a.sessions.LoadAndSave(a).ServeHTTP(w, r)
	return failed
}

// begin makes a session of an id that is not its choice.
func (a *app) begin(s step) error {
	data, err := a.sessions.Codec.Encode(time.Now().Add(time.Duration(s.Life)*time.Second), map[string]any{})
	if err != nil {
		return err
	}
	return a.sessions.Store.Commit(s.ID, data, time.Now().Add(time.Duration(s.Life)*time.Second))
}

func (a *app) do(s step) (answer map[string]any, err error) {
	answer = map[string]any{}
	ctx := context.Background()
	switch s.Do {
	case "create":
		err = a.create()
	case "gc":
		a.collect()
	case "read":
		data, found, err := a.sessions.Store.Find(s.ID)
		if err != nil || !found {
			return answer, err
		}
		if _, _, err := a.sessions.Codec.Decode(data); err != nil {
			return nil, err
		}
		if ctx, err = a.sessions.Load(ctx, s.ID); err != nil {
			return nil, err
		}
		answer["found"], answer["text"] = true, a.sessions.GetString(ctx, "text")
	case "write":
		if _, found, err := a.sessions.Store.Find(s.ID); err != nil || !found {
			if err == nil {
				err = a.begin(s)
			}
			if err != nil {
				return nil, err
			}
		}
		err = a.page(s)
	case "destroy":
		err = a.page(s)
	default:
		err = fmt.Errorf("no %s", s.Do)
	}
	return answer, err
}

func main() {
	a, err := open(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 1<<24)
	for in.Scan() {
		var s step
		err := json.Unmarshal(in.Bytes(), &s)
		var answer map[string]any
		if err == nil {
			answer, err = a.do(s)
		}
		if err != nil {
			answer = map[string]any{"error": err.Error()}
		}
		if err := json.NewEncoder(os.Stdout).Encode(answer); err != nil {
			log.Fatal(err)
		}
	}
}
