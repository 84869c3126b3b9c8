package sqltable

import (
	"crypto/rand"
	"encoding/hex"
	"time"
)

// Canary implements store.Prover: a body that the codec and a column of JSON take, under an id as short as ids are.
func (s *Store) Canary() (key string, data []byte) {
	raw := make([]byte, 16)
	rand.Read(raw)
	key = hex.EncodeToString(raw)
	if room := s.idLen - len(s.opt.Table.Prefix); room < len(key) {
		key = key[:max(room, 1)]
	}
	const what = `{"sessile":"canary"}`
	columns := [][]byte{[]byte(what), nil, nil}
	columns[1], _ = encode64(columns[0])
	columns[2], _ = deflate(columns[0])
	for _, column := range columns {
		if data, err := s.opt.Table.Codec.Read(Row{ID: key, Data: column, Time: time.Now().Truncate(time.Second).UnixMilli()}); err == nil {
			return key, data
		}
	}
	return key, columns[0]
}
