module github.com/sessile/sessile/adapters/gorilla

go 1.26.0

replace github.com/sessile/sessile => ../..

require (
	github.com/boj/redistore v1.4.1
	github.com/gorilla/securecookie v1.1.2
	github.com/gorilla/sessions v1.4.0
	github.com/sessile/sessile v0.0.0-00010101000000-000000000000
	go.uber.org/goleak v1.3.0
)

require (
	github.com/gomodule/redigo v1.9.2 // indirect
	github.com/redis/rueidis v1.0.79 // indirect
	golang.org/x/sys v0.49.0 // indirect
)
