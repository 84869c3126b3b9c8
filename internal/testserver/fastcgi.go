package testserver

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Response is what a script answered.
type Response struct {
	Status int
	Header http.Header
	Body   []byte
	Stderr []byte // errors of PHP, where it logs them to the server
}

// Record types and lengths of FastCGI 1.0 (specification, section 3.3 and 8).
const (
	fcgiBegin  = 1
	fcgiEnd    = 3
	fcgiParams = 4
	fcgiStdin  = 5
	fcgiStdout = 6
	fcgiStderr = 7

	fcgiHeaderLen  = 8
	fcgiMaxContent = 65535
)

// fcgiGet sends one request without a body over a new connection to a unix socket.
func fcgiGet(ctx context.Context, socket string, params map[string]string) (*Response, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("fastcgi: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	resp, err := fcgiExchange(conn, params)
	if err != nil {
		return nil, fmt.Errorf("fastcgi: %w", firstError(ctx.Err(), err))
	}
	return resp, nil
}

func fcgiExchange(conn io.ReadWriter, params map[string]string) (*Response, error) {
	req, err := fcgiRequest(params)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Write(req); err != nil {
		return nil, err
	}
	var stdout, stderr []byte
	r := bufio.NewReader(conn)
	for {
		kind, content, err := fcgiRead(r)
		if err != nil {
			return nil, err
		}
		switch kind {
		case fcgiStdout:
			stdout = append(stdout, content...)
		case fcgiStderr:
			stderr = append(stderr, content...)
		case fcgiEnd:
			// appStatus (4 bytes) is the script's exit status; protocolStatus says whether the request was served at all.
			if len(content) < 5 || content[4] != 0 {
				return nil, fmt.Errorf("request refused: % x", content)
			}
			resp, err := parseCGI(stdout)
			if err != nil {
				return nil, fmt.Errorf("%w (stderr: %s)", err, stderr)
			}
			resp.Stderr = stderr
			return resp, nil
		default:
			return nil, fmt.Errorf("unexpected record of type %d", kind)
		}
	}
}

func fcgiRequest(params map[string]string) ([]byte, error) {
	// Role 1 is the responder; flags 0: the server closes the connection after the answer.
	req := fcgiRecord(nil, fcgiBegin, []byte{0, 1, 0, 0, 0, 0, 0, 0})
	var record []byte
	for _, name := range slices.Sorted(maps.Keys(params)) {
		pair := fcgiLength(nil, len(name))
		pair = fcgiLength(pair, len(params[name]))
		pair = append(append(pair, name...), params[name]...)
		if len(pair) > fcgiMaxContent {
			return nil, fmt.Errorf("%s of %d bytes is too long", name, len(params[name]))
		}
		// The specification lets a pair span two records, PHP does not read it (fcgi_read_request in main/fastcgi.c).
		if len(record)+len(pair) > fcgiMaxContent {
			req = fcgiRecord(req, fcgiParams, record)
			record = nil
		}
		record = append(record, pair...)
	}
	req = fcgiRecord(req, fcgiParams, record)
	req = fcgiRecord(req, fcgiParams, nil) // an empty record ends a stream
	return fcgiRecord(req, fcgiStdin, nil), nil
}

func fcgiRecord(b []byte, kind byte, content []byte) []byte {
	b = append(b, 1, kind, 0, 1) // version 1, request 1
	b = binary.BigEndian.AppendUint16(b, uint16(len(content)))
	b = append(b, 0, 0) // padding, reserved
	return append(b, content...)
}

func fcgiLength(b []byte, n int) []byte {
	if n < 128 {
		return append(b, byte(n))
	}
	return binary.BigEndian.AppendUint32(b, uint32(n)|1<<31)
}

func fcgiRead(r *bufio.Reader) (kind byte, content []byte, err error) {
	var h [fcgiHeaderLen]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF // the worker is gone: the answer is not complete before the end record
		}
		return 0, nil, err
	}
	content = make([]byte, binary.BigEndian.Uint16(h[4:]))
	if _, err := io.ReadFull(r, content); err != nil {
		return 0, nil, err
	}
	_, err = r.Discard(int(h[6]))
	return h[1], content, err
}

// parseCGI splits a script's output into headers and body; without a Status header it is 200 (RFC 3875, 6.3.3).
func parseCGI(out []byte) (*Response, error) {
	buf := bytes.NewBuffer(out)
	r := bufio.NewReader(buf)
	header, err := textproto.NewReader(r).ReadMIMEHeader()
	if err != nil {
		return nil, fmt.Errorf("headers: %w", err)
	}
	resp := &Response{Status: http.StatusOK, Header: http.Header(header)}
	if status := resp.Header.Get("Status"); status != "" {
		code, _, _ := strings.Cut(status, " ")
		if resp.Status, err = strconv.Atoi(code); err != nil {
			return nil, fmt.Errorf("status %q: %w", status, err)
		}
	}
	resp.Body, err = io.ReadAll(r)
	return resp, err
}

func cookieHeader(cookies map[string]string) string {
	var pairs []string
	for _, name := range slices.Sorted(maps.Keys(cookies)) {
		pairs = append(pairs, name+"="+cookies[name])
	}
	return strings.Join(pairs, "; ")
}
