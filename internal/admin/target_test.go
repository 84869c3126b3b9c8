package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/sessile/sessile/store"
)

// empty is a target of which a server has forgotten everything, until it is told what to do.
type empty struct {
	holding []string
	told    string
	err     error
}

func (e *empty) Status() TargetStatus {
	return TargetStatus{Holding: e.holding, Left: map[string]uint64{"newer": 1}, Switches: 7}
}

func (e *empty) Refill(context.Context) error      { return e.decide("refill") }
func (e *empty) AcceptEmpty(context.Context) error { return e.decide("accept") }

func (e *empty) decide(how string) error {
	switch {
	case e.err != nil:
		return e.err
	case len(e.holding) == 0:
		return errors.New("nothing is forgotten")
	}
	e.holding, e.told = []string{}, how
	return nil
}

func TestATargetThatHasForgottenEverything(t *testing.T) {
	a := startAPI(t, Options{})
	ctx := t.Context()
	run := func(site, command, reason string, exit int, want string) Line {
		t.Helper()
		end, err := a.client.Run(ctx, site, "target/"+command, Request{Reason: reason}, func(string) {})
		var answered *Error
		if errors.As(err, &answered) {
			end = answered.Line
		}
		if got := fmt.Sprint(err); end.Exit != exit || !strings.Contains(got, want) {
			t.Errorf("%s %s: got exit %d, %s, want %d, %s", site, command, end.Exit, got, exit, want)
		}
		return end
	}
	for _, command := range []string{"refill", "accept"} {
		target := &empty{holding: []string{"forgotten"}}
		a.sites[1].Target = target
		run("plain", command, " ", ExitUsage, "needs a reason")
		if target.told != "" {
			t.Errorf("without a reason: %s", target.told)
		}
		target.err = store.ErrUnavailable
		run("plain", command, "x", ExitBlind, "unavailable")
		target.err = nil
		if end := run("plain", command, "the disk of "+command, 0, "nil"); target.told != command || end.Target == nil || end.Target.Switches != 7 || end.Target.Empty() {
			t.Errorf("%s: the target was told %q, the answer is %+v", command, target.told, end)
		}
		if !strings.Contains(a.log.String(), "the disk of "+command) {
			t.Errorf("%s: the reason is not logged: %s", command, a.log.String())
		}
		run("plain", command, "x", ExitClosed, "nothing to decide")
	}
	b, err := a.client.Get(ctx, "/v1/sites/plain/target/status")
	var got map[string]any
	if err != nil || json.Unmarshal(b, &got) != nil || got["switches"] != 7.0 || fmt.Sprint(got["holding"], got["left"]) != "[] map[newer:1]" {
		t.Errorf("status: got %s, %v", b, err)
	}
	const js = "Host: localhost\r\nConnection: close\r\n"
	for request, want := range map[string]int{
		"GET /v1/sites/plain/target/refill HTTP/1.1\r\n" + js + "\r\n":                                                                          405,
		"POST /v1/sites/plain/target/status HTTP/1.1\r\n" + js + "Content-Type: application/json\r\nContent-Length: 0\r\n\r\n":                  405,
		"POST /v1/sites/plain/target/accept HTTP/1.1\r\n" + js + "Content-Type: text/plain\r\nContent-Length: 0\r\n\r\n":                        415,
		"GET /v1/sites/plain/target/plan HTTP/1.1\r\n" + js + "\r\n":                                                                            404,
		"GET /v1/sites/shop/target/status HTTP/1.1\r\n" + js + "\r\n":                                                                           409,
		"POST /v1/sites/plain/target/accept HTTP/1.1\r\n" + js + "Content-Type: application/json\r\nContent-Length: 14\r\n\r\n{\"force\":true}": 400,
	} {
		if status, _, body := a.raw(request); status != want {
			t.Errorf("%s: got %d %s, want %d", request, status, body, want)
		}
	}
	run("shop", "accept", "x", ExitUsage, "does not fail over")
	if _, err := a.client.Get(ctx, "/v1/sites/shop/target/status"); err == nil || !strings.Contains(err.Error(), "does not fail over") {
		t.Errorf("status of one server: %v", err)
	}
}
