module github.com/sessile/sessile/adapters/gorilla

go 1.26.0

replace github.com/sessile/sessile => ../..

require (
	github.com/gorilla/securecookie v1.1.2
	github.com/gorilla/sessions v1.4.0
	github.com/sessile/sessile v0.0.0-00010101000000-000000000000
)
