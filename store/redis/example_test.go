package redis_test

import (
	"context"
	"errors"
	"log"
	"net/url"
	"time"

	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/redis"
)

func ExampleOpen() {
	u, err := url.Parse("redis://127.0.0.1:6379/0?prefix=PHPREDIS_SESSION:")
	if err != nil {
		log.Fatal(err)
	}
	ctx := context.Background()
	st, err := redis.Open(ctx, u) // no error where the server is away: it may come back
	if err != nil {
		log.Fatal(err)
	}
	defer st.Close()

	rec := store.Record{Data: []byte("user|i:1;"), Expires: time.Now().Add(1440 * time.Second)}
	switch err := st.Save(ctx, "2f9b1c", rec, store.IfAbsent); {
	case errors.Is(err, store.ErrConflict):
		log.Print("there is such a session")
	case errors.Is(err, store.ErrUnknown):
		log.Print("no answer came: it may have been saved")
	case err != nil:
		log.Print("it was not saved: ", err)
	}
}
