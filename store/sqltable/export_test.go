package sqltable

import (
	"maps"
	"slices"
)

func (s *Store) Table() string    { return s.opt.Table.Name }
func (s *Store) Options() Options { return s.opt }

func Steps() []string                                     { return slices.Sorted(maps.Keys(steps)) }
func ColumnID(t *Table, key string) string                { return t.columnID(key) }
func KeyOf(t *Table, column string) (key string, ok bool) { return t.key(column) }
