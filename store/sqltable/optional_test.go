package sqltable_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
)

func TestSaveAllNeedsTransactions(t *testing.T) {
	my := testserver.MariaDB(t)
	s, _ := made(t, my, strings.Replace(plain["MariaDB"], "InnoDB", "MyISAM", 1), "")
	if err := s.SaveAll(t.Context(), []store.Write{{Key: "a", Record: hour("x")}}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("SaveAll in MyISAM: got %v", err)
	}
	if _, err := s.Load(t.Context(), "a"); !errors.Is(err, store.ErrAbsent) {
		t.Errorf("Load: %v", err)
	}
}

// MySQL's binary log of statements does not take what is read as committed: logins go one write after the other then.
func TestSaveAllIntoALogOfStatements(t *testing.T) {
	s, _ := made(t, testserver.MariaDB(t, "--log-bin", "--server-id=1", "--binlog-format=STATEMENT"), plain["MariaDB"], "")
	if err := s.Save(t.Context(), "a", hour("x"), store.Always); err != nil {
		t.Fatal(err)
	}
	all := []store.Write{{Key: "a", Record: hour("y")}, {Key: "b", Record: hour("y")}}
	if err := s.SaveAll(t.Context(), all); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("SaveAll: got %v", err)
	}
	if got, err := s.Load(t.Context(), "a"); err != nil || string(got.Data) != "x" {
		t.Errorf("Load: got %q, %v", got.Data, err)
	}
}

// The application's lock may be the row's: ours goes with what is written through it, and nobody waits for ourselves.
func TestOptionalUnderARowLock(t *testing.T) {
	for name, srv := range servers(t) {
		t.Run(name, func(t *testing.T) {
			s := open(t, srv, "FOR UPDATE, a prefix, a lifetime since")
			for _, key := range []string{"a", "b"} {
				if err := s.Save(t.Context(), key, hour("old"), store.Always); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Lock(t.Context(), "b", "t", time.Minute); err != nil {
				t.Fatal(err)
			}
			both := []store.Write{{Key: "a", Record: hour("new")}, {Key: "b", Record: hour("new")}}
			if err := s.SaveAll(t.Context(), both); !errors.Is(err, errors.ErrUnsupported) {
				t.Errorf("SaveAll: got %v", err)
			}
			if got, err := s.Append(t.Context(), "b", []byte("er"), time.Now().Add(time.Hour)); err != nil || string(got.Data) != "older" {
				t.Errorf("Append: got %q, %v", got.Data, err)
			}
			if _, err := s.Unlock(t.Context(), "b", "t"); err != nil {
				t.Fatal(err)
			}
			if err := s.SaveAll(t.Context(), both); err != nil {
				t.Errorf("SaveAll behind it: %v", err)
			}
		})
	}
}

// A deadline that is later stays to the second, however often something is added before it.
func TestAppendDoesNotCreep(t *testing.T) {
	for name, srv := range servers(t) {
		t.Run(name, func(t *testing.T) {
			s, table := made(t, srv, plain[name], "")
			if err := s.Save(t.Context(), "k", hour("x"), store.Always); err != nil {
				t.Fatal(err)
			}
			ends := func() string { return srv.Exec(fmt.Sprintf("SELECT expires FROM %s WHERE id = 'k'", table)) }
			was := ends()
			for range 20 {
				if _, err := s.Append(t.Context(), "k", []byte("x"), time.Now().Add(time.Minute)); err != nil {
					t.Fatal(err)
				}
			}
			if is := ends(); is != was || was == "" {
				t.Errorf("it ends at %s, and at first at %s", is, was)
			}
		})
	}
}
