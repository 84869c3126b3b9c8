package sessile

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
)

// A writer has the session saved at the last moment at which a cookie can be set: before the first final status, byte, flush or
// hijack. http.ResponseController finds what else the writer below can do through Unwrap.
type writer struct {
	http.ResponseWriter
	session committer
	begun   bool
	// hijacked: whoever takes the connection over writes the header himself, and none of ours.
	hijacked bool
	drop     bool // the session could not be saved: what the handler writes is dropped
}

// A committer is a Session, whatever its values are.
type committer interface {
	commit(h http.Header) error        // is called once, before the header is sent; sets begun
	unavailable(w http.ResponseWriter) // answers where that failed
}

func (w *writer) begin() {
	if !w.begun {
		if w.session.commit(w.Header()) != nil {
			h := w.Header()
			cookies := h["Set-Cookie"] // they are true all the same, another Manager's, say
			if clear(h); len(cookies) > 0 {
				h["Set-Cookie"] = cookies
				noStore(h)
			}
			w.drop = true
			w.session.unavailable(w.ResponseWriter)
		}
	}
}

func (w *writer) WriteHeader(status int) {
	if status >= 200 || status == http.StatusSwitchingProtocols { // 1xx are followed by the real one; 101 is final (RFC 9110, 15.2)
		w.begin()
	}
	if !w.drop {
		w.ResponseWriter.WriteHeader(status)
	}
}

func (w *writer) Write(b []byte) (int, error) {
	w.begin()
	if w.drop {
		return len(b), nil
	}
	return w.ResponseWriter.Write(b)
}

func (w *writer) WriteString(s string) (int, error) {
	w.begin()
	if w.drop {
		return len(s), nil
	}
	return io.WriteString(w.ResponseWriter, s)
}

func (w *writer) ReadFrom(r io.Reader) (int64, error) {
	w.begin()
	if w.drop {
		return io.Copy(io.Discard, r)
	}
	return io.Copy(w.ResponseWriter, r)
}

// Flush implements http.Flusher. Where the writer below is none it does nothing, but save the session.
func (w *writer) Flush() { _ = w.FlushError() }

func (w *writer) FlushError() error {
	w.begin()
	err := http.NewResponseController(w.ResponseWriter).Flush()
	if w.drop { // who streams can stop: its client has another answer
		return errNotSaved
	}
	return err
}

// CloseNotify is what gin's streams ask for; net/http has had Request.Context in its place since Go 1.7.
func (w *writer) CloseNotify() <-chan bool {
	if n, ok := w.ResponseWriter.(interface{ CloseNotify() <-chan bool }); ok {
		return n.CloseNotify()
	}
	return nil
}

var errNotSaved = errors.New("sessile: the session could not be saved, and the request was answered so")

func (w *writer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	w.hijacked = true
	if w.begin(); w.drop {
		return nil, nil, errNotSaved
	}
	return http.NewResponseController(w.ResponseWriter).Hijack()
}

func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }
