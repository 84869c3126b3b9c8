package sessile

// Flash is for a field of a session's value: things that are to be shown once, on the next page, like "Saved.". The zero value is empty.
// Add them in an Update; Take them where they are shown.
type Flash[V any] struct {
	Last  uint32 `json:"n,omitempty"` // the number of the last one; they are numbered one after the other
	Items []V    `json:"v,omitempty"`
}

// Add adds one.
func (f *Flash[V]) Add(v V) {
	f.Last++
	f.Items = append(f.Items, v)
}

// upTo removes those up to the number last.
func (f *Flash[V]) upTo(last uint32) {
	n := len(f.Items) - int(f.Last-last) // those behind it stay
	if n <= 0 {
		return
	}
	f.Items = f.Items[min(n, len(f.Items)):]
	if len(f.Items) == 0 {
		f.Items = nil
	}
}

// Take returns what is in the field that at points to, and has it removed. What another request adds meanwhile stays for the next page; what
// two requests take at the same time both get.
func Take[T, V any](s *Session[T], at func(v *T) *Flash[V]) ([]V, error) {
	v := s.Value()
	f := at(&v)
	if len(f.Items) == 0 {
		return nil, nil
	}
	items, last := f.Items, f.Last
	return items, s.Update(func(v *T) error {
		at(v).upTo(last)
		return nil
	})
}
