package redis

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
)

var kib = []byte(strings.Repeat("0123456789abcdef", 64))

// callers runs f in n goroutines, b.N times in all.
func callers(b *testing.B, n int, f func(i int) error) {
	b.Helper()
	var next atomic.Int64
	var wg sync.WaitGroup
	b.ResetTimer()
	start := time.Now()
	for range n {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
				if err := f(int(i)); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/time.Since(start).Seconds(), "ops/s")
}

func BenchmarkCallers(b *testing.B) {
	server := testserver.Redis(b)
	for _, links := range []int{1, 2, 4} {
		s := open(b, fmt.Sprint(server.URL(), "?connections=", links))
		ctx := context.Background()
		rec := store.Record{Data: kib, Expires: time.Now().Add(time.Hour)}
		keys := make([]string, 10_000)
		for i := range keys {
			keys[i] = fmt.Sprint("PHPREDIS_SESSION:", i)
			if err := s.Save(ctx, keys[i], rec, store.Always); err != nil {
				b.Fatal(err)
			}
		}
		w := s.Workflow("w")
		if err := w.RaiseFence(ctx, 1); err != nil {
			b.Fatal(err)
		}
		for _, n := range []int{1, 50} {
			name := fmt.Sprintf("%d by %d links", n, links)
			b.Run("load/"+name, func(b *testing.B) {
				callers(b, n, func(i int) error {
					_, err := s.Load(ctx, keys[i%len(keys)])
					return err
				})
			})
			b.Run("save/"+name, func(b *testing.B) {
				callers(b, n, func(i int) error { return s.Save(ctx, keys[i%len(keys)], rec, store.Always) })
			})
			b.Run("marked/"+name, func(b *testing.B) {
				callers(b, n, func(i int) error {
					_, _, err := w.LoadMarked(ctx, keys[i%len(keys)])
					return err
				})
			})
			b.Run("strict/"+name, func(b *testing.B) {
				callers(b, n, func(i int) error {
					op, key := store.Op{Nonce: fmt.Sprint(i), Epoch: 1, Lease: time.Minute}, keys[i%len(keys)]
					if _, err := w.Begin(ctx, key, op); err != nil {
						return err
					}
					return w.Commit(ctx, key, op, &rec)
				})
			})
		}
	}
}

// BenchmarkBare is what there is to be had: rueidis alone, and a raw connection that SETs are poured into (redis-cli --pipe).
func BenchmarkBare(b *testing.B) {
	server := testserver.Redis(b)
	ctx := context.Background()
	c, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{server.Addr}, ForceSingleClient: true,
		PipelineMultiplex: -1, AlwaysPipelining: true, DisableCache: true, DisableRetry: true})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	b.Run("rueidis SET, 50", func(b *testing.B) {
		callers(b, 50, func(i int) error {
			return c.Do(ctx, c.B().Set().Key(fmt.Sprint(i%10_000)).Value(string(kib)).PxMilliseconds(3_600_000).Build()).Error()
		})
	})
	b.Run("rueidis GET, 50", func(b *testing.B) {
		callers(b, 50, func(i int) error {
			_, err := c.Do(ctx, c.B().Get().Key(fmt.Sprint(i%10_000)).Build()).AsBytes()
			if rueidis.IsRedisNil(err) {
				return nil
			}
			return err
		})
	})
	b.Run("pipe", func(b *testing.B) {
		server.Do("FLUSHALL")
		nc, err := net.Dial("tcp", server.Addr)
		if err != nil {
			b.Fatal(err)
		}
		defer nc.Close()
		done := make(chan error, 1)
		go func() {
			_, err := io.CopyN(io.Discard, nc, int64(b.N)*int64(len("+OK\r\n")))
			done <- err
		}()
		w := bufio.NewWriterSize(nc, 64<<10)
		b.ResetTimer()
		for i := range b.N {
			key := fmt.Sprint("PHPREDIS_SESSION:", i%50_000)
			fmt.Fprintf(w, "*5\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n$2\r\nPX\r\n$7\r\n3600000\r\n", len(key), key, len(kib), kib)
		}
		w.Flush()
		if err := <-done; err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "entries/s")
	})
}

func BenchmarkBatches(b *testing.B) {
	server := testserver.Redis(b)
	ctx := context.Background()
	for _, links := range []int{1, 2, 4} {
		s := open(b, fmt.Sprint(server.URL(), "?connections=", links))
		w := s.Workflow("w")
		if err := w.RaiseFence(ctx, 1); err != nil {
			b.Fatal(err)
		}
		for _, n := range []int{2, 4} {
			for _, size := range []int{100, 250, 500} {
				batch := func(round int) []store.Entry {
					entries := make([]store.Entry, size)
					for i := range entries {
						entries[i] = store.Entry{
							Key:    fmt.Sprint("PHPREDIS_SESSION:", round, "-", i),
							Record: &store.Record{Data: kib, Expires: time.Now().Add(time.Hour)},
						}
					}
					return entries
				}
				batches := make([][]store.Entry, 200)
				for i := range batches {
					batches[i] = batch(i)
				}
				run := func(name string, f func([]store.Entry) error) {
					b.Run(fmt.Sprintf("%s/%d of %d by %d links", name, n, size, links), func(b *testing.B) {
						server.Do("FLUSHALL")
						if err := w.RaiseFence(ctx, 1); err != nil {
							b.Fatal(err)
						}
						if name == "same" {
							for _, batch := range batches {
								if _, err := w.Add(ctx, 1, batch); err != nil {
									b.Fatal(err)
								}
							}
						}
						callers(b, n, func(i int) error { return f(batches[i%len(batches)]) })
						b.ReportMetric(float64(b.N*size)/b.Elapsed().Seconds(), "entries/s")
					})
				}
				run("add", func(e []store.Entry) error { _, err := w.Add(ctx, 1, e); return err })
				run("same", func(e []store.Entry) error { _, err := w.Same(ctx, 1, e); return err })
			}
		}
	}
}

// What an origin pays for its mark and its clock: 50 callers, sessions of 1 KiB.
func BenchmarkOrigin(b *testing.B) {
	server := testserver.Redis(b)
	ctx := context.Background()
	s := open(b, server.URL())
	o := NewOrigin(s, 0)
	if err := o.SwapMark(ctx, store.Mark{}, marked); err != nil {
		b.Fatal(err)
	}
	keys := make([]string, 10_000)
	rec := store.Record{Data: kib, Expires: time.Now().Add(time.Hour)}
	for i := range keys {
		keys[i] = fmt.Sprint("PHPREDIS_SESSION:", i)
		if err := s.Save(ctx, keys[i], rec, store.Always); err != nil {
			b.Fatal(err)
		}
	}
	for _, c := range []struct {
		name string
		s    store.Store
	}{{"store", s}, {"origin", o.Under(marked)}} {
		b.Run("load/"+c.name, func(b *testing.B) {
			callers(b, 50, func(i int) error { _, err := c.s.Load(ctx, keys[i%len(keys)]); return err })
		})
		b.Run("save/"+c.name, func(b *testing.B) {
			callers(b, 50, func(i int) error { return c.s.Save(ctx, keys[i%len(keys)], rec, store.Always) })
		})
	}
}
