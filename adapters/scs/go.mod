module github.com/sessile/sessile/adapters/scs

go 1.26.0

replace github.com/sessile/sessile => ../..

require (
	github.com/alexedwards/scs/v2 v2.9.0
	github.com/sessile/sessile v0.0.0-00010101000000-000000000000
	go.uber.org/goleak v1.3.0
)

require (
	github.com/redis/rueidis v1.0.79 // indirect
	golang.org/x/sys v0.49.0 // indirect
)
