module github.com/sessile/sessile/bench

go 1.26.0

replace github.com/sessile/sessile => ../

require (
	github.com/sessile/sessile v0.0.0-00010101000000-000000000000
	golang.org/x/sys v0.49.0
)
