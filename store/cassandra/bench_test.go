package cassandra_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	gocql "github.com/apache/cassandra-gocql-driver/v2"

	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/cassandra"
)

// BenchmarkBesideTheDriver has the store and the plain driver do the same to sessions of 4 KiB, in turns, one at a time. Run it with
// -benchtime 3000x: the first few thousand requests to a Java server are slow.
func BenchmarkBesideTheDriver(b *testing.B) {
	for _, variant := range []string{"v1", "v2"} {
		b.Run("paxos_"+variant, func(b *testing.B) { beside(b, variant) })
	}
}

func beside(b *testing.B, variant string) {
	check := func(err error) {
		if err != nil {
			b.Fatal(err)
		}
	}
	server := testserver.Cassandra(b, "paxos_variant: "+variant)
	cfg := gocql.NewCluster(server.Addr)
	cfg.Consistency, cfg.SerialConsistency = gocql.LocalQuorum, gocql.LocalSerial
	driver, err := cfg.CreateSession()
	check(err)
	defer driver.Close()
	check(driver.Query("CREATE KEYSPACE bench WITH replication = {'class': 'SimpleStrategy', 'replication_factor': 1}").Exec())
	ctx := context.Background()
	s, err := cassandra.Open(ctx, cassandra.Options{Hosts: []string{server.Addr}, Keyspace: "bench", Create: true})
	check(err)
	defer s.Close()
	check(s.SwapMark(ctx, store.Mark{}, store.Mark{Identity: "bench"}))
	under := s.Under(store.Mark{Identity: "bench"})
	body := func(i int) []byte { return fmt.Appendf(nil, "%08d%s", i, strings.Repeat("x", 4088)) }
	record := func(i int) store.Record { return store.Record{Data: body(i), Expires: time.Now().Add(time.Hour)} }
	key := func(i int) string { return fmt.Sprint("session", i%1000) }
	for i := range 1000 {
		check(s.Save(ctx, key(i), record(0), store.Always))
	}
	var data []byte
	get := func(i int, c gocql.Consistency) error {
		return driver.Query("SELECT data FROM bench.sessions WHERE id = ?", key(i)).Consistency(c).Scan(&data)
	}
	ops := []struct {
		name string
		do   func(i int) error
	}{
		{"driver-SELECT", func(i int) error { return get(i, gocql.LocalQuorum) }},
		{"Load", func(i int) error { _, err := s.Load(ctx, key(i)); return err }},
		{"driver-SELECT-serial", func(i int) error { return get(i, gocql.LocalSerial) }},
		{"Inspect", func(i int) error { _, err := s.Inspect(ctx, key(i)); return err }},
		{"driver-UPDATE", func(i int) error {
			return driver.Query("UPDATE bench.sessions USING TTL 3600 SET data = ? WHERE id = ?", body(i), key(i)+"plain").Exec()
		}},
		{"driver-SELECT-and-UPDATE-IF", func(i int) error {
			if err := get(i, gocql.LocalSerial); err != nil {
				return err
			}
			applied, err := driver.Query("UPDATE bench.sessions USING TTL 3600 SET data = ? WHERE id = ? IF data = ?", body(i), key(i), data).ScanCAS(nil)
			if err == nil && !applied {
				err = store.ErrConflict
			}
			return err
		}},
		{"Save", func(i int) error { return s.Save(ctx, key(i), record(i), store.Always) }},
		{"Save-under-a-mark", func(i int) error { return under.Save(ctx, key(i), record(i), store.Always) }},
	}
	took := make([][]time.Duration, len(ops))
	run := func(i int, keep bool) {
		for j := range ops {
			j = (i + j) % len(ops)
			begun := time.Now()
			if err := ops[j].do(i); err != nil {
				b.Fatalf("%s: %v", ops[j].name, err)
			}
			if keep {
				took[j] = append(took[j], time.Since(begun))
			}
		}
	}
	for i := range min(b.N, 2000) {
		run(i, false)
	}
	for i := 0; b.Loop(); i++ {
		run(i, true)
	}
	for j, op := range ops {
		slices.Sort(took[j])
		n := len(took[j])
		b.ReportMetric(float64(took[j][n/2].Microseconds()), op.name+"-p50-µs")
		b.ReportMetric(float64(took[j][n*99/100].Microseconds()), op.name+"-p99-µs")
	}
}
