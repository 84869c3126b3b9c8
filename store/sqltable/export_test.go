package sqltable

func (s *Store) Table() string    { return s.opt.Table.Name }
func (s *Store) Options() Options { return s.opt }
