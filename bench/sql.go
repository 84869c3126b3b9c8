package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// sql moves tables of MariaDB that are larger than the server's buffer pool.
func (r *run) sql() error {
	redis, err := r.redis()
	if err != nil {
		return err
	}
	install, server := find("mariadb-install-db"), find("mariadbd")
	if install == "" || server == "" {
		fmt.Print("\n### A table of MariaDB\n\nLeft out, since it is not on this machine: mariadb-server (`apt-get install --no-install-recommends mariadb-server`).\n")
		return nil
	}
	db, err := r.mariadb(install, server, "--innodb-buffer-pool-size=64M", "--innodb-log-file-size=96M", "--innodb-flush-log-at-trx-commit=2", "--skip-log-bin")
	if err != nil {
		return err
	}
	defer db.Close()
	if err := db.exec(r.ctx, "CREATE DATABASE app CHARACTER SET utf8mb4"); err != nil {
		return err
	}
	n := r.scaled(1_000_000)
	r.say("making a table of %d sessions", n)
	for table, n := range map[string]int{"sessions": n, "tenth": n / 10} {
		if err := db.exec(r.ctx, fmt.Sprintf("CREATE TABLE app.%s (session_id varchar(128) COLLATE utf8mb4_bin PRIMARY KEY, expires int unsigned NOT NULL, "+
			"data mediumtext COLLATE utf8mb4_bin)", table),
			fmt.Sprintf(`INSERT INTO app.%s SELECT SHA2(seq, 256), UNIX_TIMESTAMP() + 86400 + seq %% 86400, CONCAT('{"user":', seq, ',"pad":"', REPEAT(MD5(seq), 30), '"}') `+
				"FROM app.seq_1_to_%d ORDER BY 1", table, n)); err != nil {
			return err
		}
	}
	names := []string{"SELECT, redis-cli --pipe", "sessile", "sessile, a tenth of it"}
	results, err := r.rotated("sql", names, func(row int) ([]float64, error) {
		if err := redis.cli("FLUSHALL"); err != nil {
			return nil, err
		}
		switch row {
		case 0:
			return r.stream(db, redis, n)
		case 1:
			return r.table(db, redis, "sessions", n)
		default:
			return r.table(db, redis, "tenth", n/10)
		}
	})
	if err != nil {
		return err
	}
	fmt.Printf("\n### A table of MariaDB\n\n%d rows of about 1 KiB, in a MariaDB with a buffer pool of 64 MiB and in the page cache of the system, to one Redis without "+
		"persistence. SELECT: `mariadb --quick` writes the commands, `redis-cli --pipe` loads them. Sessile: between start and end of backfill and reconcile pass, as `migrate status` "+
		"has them; and the whole of `switchtraffic --to sync`, which watches the origin for three seconds, reads everything three times, and waits for a lease of 3.5 s.\n", n)
	plain, sessile := results[0], results[1]
	ratio := func(column int) string {
		return fmt.Sprintf("%.2f", sessile.median(func(round int, v []float64) float64 { return v[column] / plain[round][0] }))
	}
	table([][]string{{"", "sessions/s", "rate to SELECT"},
		{names[0], fmt.Sprintf("%.0f", plain.mid(0)), "1.00"},
		{"sessile: backfill", fmt.Sprintf("%.0f", sessile.mid(0)), ratio(0)},
		{"sessile: reconcile pass", fmt.Sprintf("%.0f", sessile.mid(1)), ratio(1)}})
	memory := [][]string{{"resident MiB of sessile", "before", "peak of backfill", "peak of the gates into sync", "peak of the reconcile pass", "after", "step into sync, s"}}
	for i, sessions := range []int{n, n / 10} {
		cells := results[1+i].cells("%.0f", "%.0f", "%.0f", "%.0f", "%.0f", "%.0f", "%.0f", "%.0f")[2:]
		memory = append(memory, append([]string{fmt.Sprint(sessions, " sessions")}, cells...))
	}
	table(memory)
	return r.foreground(db, redis, n)
}

// foreground measures what a move means to those who use the database meanwhile.
func (r *run) foreground(db *mariadb, redis *server, n int) error {
	const rate = 200
	seconds := max(3, r.scaled(15))
	names := []string{"no move", "backfill", "backfill, --max-load 25"}
	results, err := r.rotated("foreground", names, func(row int) ([]float64, error) {
		if err := redis.cli("FLUSHALL"); err != nil {
			return nil, err
		}
		seen := 0.0
		stop := func() error { return nil }
		if row > 0 {
			args := []string{"--target=redis://" + redis.addr, "--lifetime=48h", "--origin=" + db.origin("sessions")}
			if row == 2 {
				args = append(args, "--max-load=25")
			}
			g, err := r.serve(args...)
			if err != nil {
				return nil, err
			}
			stop = func() error {
				defer g.stop()
				st, err := g.status()
				if seen = float64(st.Backfill.Seen); st.Backfill.State == "done" {
					r.say("the backfill ended before its users did")
				}
				return err
			}
			if _, err := g.migrate("create"); err != nil {
				return nil, err
			}
			if _, err := g.migrate("switchtraffic", "--to=dual-write"); err != nil {
				return nil, err
			}
		}
		times, err := db.users(r.ctx, rate, time.Duration(seconds)*time.Second, n)
		if err != nil {
			return nil, err
		}
		err = stop()
		if row > 0 {
			if err := db.exec(r.ctx, "DROP TABLE app.sessile_marks"); err != nil {
				return nil, err
			}
		}
		return append(summary(times), seen/float64(seconds)), err
	})
	if err != nil {
		return err
	}
	fmt.Printf("\nUsers of the same table meanwhile: %d pages a second, begun when they are due, each a SELECT of a row by its id and an UPDATE of it, over connections of their "+
		"own; for %d s. Times in ms from when a page was due.\n", rate, seconds)
	rows := [][]string{{"", "mean", "p50", "p99", "p99 to no move", "backfilled/s"}}
	for i, s := range results {
		rows = append(rows, append(append([]string{names[i]}, s.cells("%.2f", "%.2f", "%.2f")...), s.share(results[0], 2), fmt.Sprintf("%.0f", s.mid(3))))
	}
	table(rows)
	return nil
}

func (db *mariadb) origin(table string) string {
	return "mysql://root@" + db.addr + "/app?preset=express-mysql-session&table=" + table
}

// stream pipes a SELECT into redis-cli. The server writes the commands; the client ends each row with the line feed that
// the last line lacks.
func (r *run) stream(db *mariadb, redis *server, n int) ([]float64, error) {
	args := []string{"mariadb", "--no-defaults", "--socket=" + db.socket, "--user=root", "--quick", "--raw", "--batch", "--skip-column-names", "app", "-e", `SELECT CONCAT('*5\r\n$3\r\nSET\r\n$', LENGTH(session_id), '\r\n', session_id, '\r\n$', LENGTH(data), '\r\n', ` +
		`data, '\r\n$2\r\nEX\r\n$', LENGTH(expires - UNIX_TIMESTAMP()), '\r\n', expires - UNIX_TIMESTAMP(), '\r') FROM sessions`}
	from := exec.CommandContext(r.ctx, args[0], args[1:]...)
	to := exec.CommandContext(r.ctx, "redis-cli", "-u", "redis://"+redis.addr, "--pipe")
	var said, out bytes.Buffer
	from.Stderr, to.Stdout, to.Stderr = &said, &out, &out
	var err error
	if to.Stdin, err = from.StdoutPipe(); err != nil {
		return nil, err
	}
	start := time.Now()
	if err := to.Start(); err != nil {
		return nil, err
	}
	err = from.Start()
	if err == nil {
		err = to.Wait()
	}
	took := time.Since(start)
	if werr := from.Wait(); err == nil {
		err = werr
	}
	if err != nil || !strings.Contains(out.String(), fmt.Sprintf("errors: 0, replies: %d\n", n)) {
		return nil, fmt.Errorf("SELECT: %v: %s%s", err, &said, &out)
	}
	return []float64{float64(n) / took.Seconds()}, nil
}

// table moves one with the engine. It returns what engine does, and the seconds of the step into sync.
func (r *run) table(db *mariadb, redis *server, table string, n int) ([]float64, error) {
	values, step, err := r.engine(n, "--target=redis://"+redis.addr, "--lifetime=48h", "--origin="+db.origin(table))
	if err != nil {
		return nil, err
	}
	return append(values, step.Seconds()), db.exec(r.ctx, "DROP TABLE app.sessile_marks")
}

// users run rate pages a second on the table of n sessions; it returns how long each took from when it was due, in ms.
func (db *mariadb) users(ctx context.Context, rate int, d time.Duration, n int) ([]float64, error) {
	pool, err := db.open("app")
	if err != nil {
		return nil, err
	}
	defer pool.Close()
	pool.SetMaxIdleConns(100)
	pool.SetMaxOpenConns(100)
	var mu sync.Mutex // guards times, failed
	var times []float64
	var failed error
	var wg sync.WaitGroup
	start := time.Now()
	for i := range int(d.Seconds() * float64(rate)) {
		due := start.Add(time.Duration(i) * time.Second / time.Duration(rate))
		time.Sleep(time.Until(due))
		wg.Go(func() {
			user := 1 + rand.N(n)
			var data string
			err := pool.QueryRowContext(ctx, "SELECT data FROM sessions WHERE session_id = SHA2(?, 256)", user).Scan(&data)
			if err == nil {
				_, err = pool.ExecContext(ctx, "UPDATE sessions SET data = ?, expires = UNIX_TIMESTAMP() + 86400 WHERE session_id = SHA2(?, 256)", data, user)
			}
			took := time.Since(due)
			mu.Lock()
			defer mu.Unlock()
			times = append(times, float64(took.Microseconds())/1000)
			if err != nil {
				failed = err
			}
		})
	}
	wg.Wait()
	return times, failed
}
