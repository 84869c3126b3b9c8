package gorilla

// Known counts the sessions of which a store knows something.
func Known(s *Store) (n int) {
	s.states.Range(func(any, any) bool { n++; return true })
	return n
}
