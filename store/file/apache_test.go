package file_test

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/file"
)

func apache(locks string) func(*file.Options) {
	return func(o *file.Options) { o.Layout, o.LockDir = file.ApacheSession, locks }
}

func hexKey(word string) string { return hex.EncodeToString([]byte(word)) }

var hexBad = []string{"..", "a/b", "a\x00b", "zz9", "a.b", "\x11", "Apache-Session-ab.lock", strings.Repeat("a", 236)}

// perlPage is a page of an application: it ties a session, says what is in it, perhaps waits for a file, and changes it.
const perlPage = `use strict; use Apache::Session::File;
my ($dir, $locks, $id, $transaction, $do, $flag, $until) = @ARGV;
tie my %s, 'Apache::Session::File', $id eq 'new' ? undef : $id, {Directory => $dir, LockDirectory => $locks, Transaction => $transaction};
print $s{_session_id}, " ", $s{n} // '-', "\n";
if ($flag) { open my $f, '>', $flag; close $f; for (1..2000) { last if -e $until; select undef, undef, undef, 0.005 } }
if ($do eq 'count') { $s{n} = ($s{n} // 0) + 1 } elsif ($do eq 'delete') { tied(%s)->delete }
`

// perl is a site on Apache::Session::File, and our store on its directories.
type perl struct {
	t          *testing.T
	s          *file.Store
	dir, locks string
}

func newPerl(t *testing.T, opts ...func(*file.Options)) *perl {
	t.Helper()
	testserver.Need(t, "Perl's Apache::Session", exec.Command("perl", "-MApache::Session::File", "-e", "1").Run() == nil)
	p := &perl{t: t, dir: t.TempDir(), locks: t.TempDir()}
	p.s = open(t, p.dir, append(opts, apache(p.locks))...)
	return p
}

// page runs a page to its end, and returns the id and the count that it saw, or that it had no such session.
func (p *perl) page(id, do string, more ...string) (saw, n string) {
	p.t.Helper()
	args := append([]string{"-e", perlPage, p.dir, p.locks, id, "1", do}, more...)
	out, err := exec.CommandContext(within(p.t, 20*time.Second), "perl", args...).CombinedOutput()
	if strings.Contains(string(out), "Object does not exist in the data store") {
		return "", "none"
	}
	saw, n, _ = strings.Cut(strings.TrimSpace(string(out)), " ")
	if err != nil || n == "" {
		p.t.Errorf("perl: %v: %s", err, out)
	}
	return saw, n
}

// The real module makes, reads, changes and deletes sessions, and so do we, and each sees what the other did.
func TestApacheSession(t *testing.T) {
	p := newPerl(t)
	id, _ := p.page("new", "count")
	got, err := p.s.Load(ctx, id)
	if err != nil || len(got.Data) < 3 || got.Data[0] != 5 || time.Until(got.Expires) < lifetime-time.Minute {
		t.Fatalf("what Perl made: % x until %v, %v", got.Data, got.Expires, err)
	}
	other := strings.Repeat("0f", 16)
	body := strings.ReplaceAll(string(got.Data), id, other)
	if err := p.s.Save(ctx, other, record(body), store.IfAbsent); err != nil {
		t.Fatal(err)
	}
	if saw, n := p.page(other, "count"); saw != other || n != "1" {
		t.Errorf("what we made: Perl saw %q, %q", saw, n)
	}
	if _, n := p.page(other, "look"); n != "2" {
		t.Errorf("Perl saw %q, want 2", n)
	}
	if err := p.s.Save(ctx, id, got, store.IfVersion(got.Version())); err != nil {
		t.Error(err)
	}
	if _, err := p.s.Delete(ctx, id, store.Always); err != nil {
		t.Error(err)
	}
	if _, n := p.page(id, "look"); n != "none" {
		t.Errorf("what we deleted: Perl saw %q", n)
	}
	p.page(other, "delete")
	if _, err := p.s.Load(ctx, other); !errors.Is(err, store.ErrAbsent) {
		t.Errorf("what Perl deleted: %v", err)
	}
	put(t, filepath.Join(p.dir, "README"), "")
	id, _ = p.page("new", "count")
	page, err := p.s.Scan(ctx, "", 10)
	if err != nil || len(page.Keys) != 1 || page.Keys[0] != id || page.Skipped["foreign name"] != 1 {
		t.Errorf("Scan: %v, %v", page, err)
	}
}

// A page has the session's lock to its end: we wait for it, and it for us. With Transaction => 1 it excludes readers, too.
func TestApacheSessionLocks(t *testing.T) {
	p := newPerl(t)
	id, _ := p.page("new", "count")
	flag, until := filepath.Join(t.TempDir(), "flag"), filepath.Join(t.TempDir(), "until")
	var wg sync.WaitGroup
	wg.Go(func() { p.page(id, "count", flag, until) })
	eventually(t, "the page has its session", func() bool { _, err := os.Stat(flag); return err == nil })
	if err := p.s.Lock(within(t, 100*time.Millisecond), id, "us", time.Minute); !errors.Is(err, store.ErrLocked) {
		t.Errorf("Lock beside a page: %v", err)
	}
	if _, err := p.s.Load(within(t, 100*time.Millisecond), id); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("Load in the middle of a page: %v", err)
	}
	wg.Go(func() {
		if err := p.s.Lock(within(t, 20*time.Second), id, "us", time.Minute); err != nil {
			t.Errorf("Lock behind a page: %v", err)
		}
	})
	put(t, until, "")
	wg.Wait()

	done := make(chan string, 1)
	go func() { _, n := p.page(id, "look"); done <- n }()
	select {
	case n := <-done:
		t.Errorf("a page went past our lock and saw %q", n)
	case <-time.After(200 * time.Millisecond): // it had the time; that it did wait is seen below
	}
	rec, err := p.s.Load(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.s.Save(ctx, id, rec, store.IfVersion(rec.Version())); err != nil {
		t.Error(err)
	}
	if held, err := p.s.Unlock(ctx, id, "us"); !held || err != nil {
		t.Errorf("Unlock: %v, %v", held, err)
	}
	if n := <-done; n != "2" {
		t.Errorf("the page behind our lock saw %q, want 2", n)
	}
}

// Pages and we count in one session: under the lock nothing is lost, be the lock files swept away all the while.
func TestApacheSessionCounts(t *testing.T) {
	p := newPerl(t)
	id, _ := p.page("new", "count")
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for range 5 {
				p.page(id, "count")
			}
		})
	}
	for w := range 2 {
		wg.Go(func() {
			for i := range 20 {
				token := fmt.Sprint(w, i)
				if err := p.s.Lock(within(t, 20*time.Second), id, token, time.Minute); err != nil {
					t.Errorf("Lock: %v", err)
					return
				}
				rec, err := p.s.Load(ctx, id)
				if err == nil {
					err = p.s.Save(ctx, id, record(string(rec.Data)), store.IfVersion(rec.Version()))
				}
				if err != nil {
					t.Errorf("under the lock: %v", err)
				}
				p.s.Unlock(ctx, id, token)
			}
		})
	}
	wg.Wait()
	if _, n := p.page(id, "look"); n != "11" {
		t.Errorf("counted to %s, want 11", n)
	}
	if err := os.Remove(filepath.Join(p.locks, "Apache-Session-"+id+".lock")); err != nil {
		t.Fatal(err)
	}
	if err := p.s.Touch(ctx, id, time.Now().Add(time.Hour)); err != nil {
		t.Error(err)
	}
	if _, n := p.page(id, "look"); n != "11" {
		t.Errorf("after its lock file was swept away Perl sees %s", n)
	}
}

// A lock file is swept away while one page has it and we wait for it. The next page makes another: that is the lock then.
func TestApacheSessionLockFileSweptAway(t *testing.T) {
	p := newPerl(t)
	id, _ := p.page("new", "count")
	dir := t.TempDir()
	var wg sync.WaitGroup
	defer wg.Wait()
	begin := func(name string) (end func()) {
		flag, until := filepath.Join(dir, name), filepath.Join(dir, name+"-until")
		wg.Go(func() { p.page(id, "look", flag, until) })
		eventually(t, name+" has the session", func() bool { _, err := os.Stat(flag); return err == nil })
		return func() { put(t, until, "") }
	}
	endFirst := begin("first")
	locked := make(chan error, 1)
	go func() { locked <- p.s.Lock(within(t, 20*time.Second), id, "us", time.Minute) }()
	eventually(t, "we wait", func() bool { return p.s.Blocked() == 1 })
	if err := os.Remove(filepath.Join(p.locks, "Apache-Session-"+id+".lock")); err != nil {
		t.Fatal(err)
	}
	endSecond := begin("second")
	endFirst()
	select {
	case err := <-locked:
		t.Errorf("the lock was ours (%v) while the second page had it", err)
		endSecond()
		return
	case <-time.After(300 * time.Millisecond): // it had the time
	}
	endSecond()
	if err := <-locked; err != nil {
		t.Error(err)
	}
}

// A session that is not there is locked by a page that has deleted it: who makes it anew waits.
func TestApacheSessionMadeAnewBehindAPage(t *testing.T) {
	p := newPerl(t)
	id, _ := p.page("new", "count")
	flag, until := filepath.Join(t.TempDir(), "flag"), filepath.Join(t.TempDir(), "until")
	script := strings.Replace(perlPage, "if ($flag)", "tied(%s)->{object_store}->remove(tied(%s)); tied(%s)->{status} = 0; if ($flag)", 1)
	cmd := exec.CommandContext(within(t, 20*time.Second), "perl", "-e", script, p.dir, p.locks, id, "1", "look", flag, until)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the page has removed its session", func() bool { _, err := os.Stat(flag); return err == nil })
	if err := p.s.Save(within(t, 100*time.Millisecond), id, record("new"), store.Always); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("Save beside the page: %v", err)
	}
	if err := p.s.Lock(within(t, 100*time.Millisecond), id, "us", time.Minute); !errors.Is(err, store.ErrLocked) {
		t.Errorf("Lock beside the page: %v", err)
	}
	put(t, until, "")
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if err := p.s.Save(within(t, 10*time.Second), id, record("new"), store.Always); err != nil {
		t.Error(err)
	}
}

// The move's own session is one that the layout can hold.
func TestCanary(t *testing.T) {
	for name, s := range map[string]*file.Store{
		"php":            open(t, t.TempDir()),
		"apache-session": open(t, t.TempDir(), apache(t.TempDir())),
		"in Base64":      open(t, t.TempDir(), apache(t.TempDir()), func(o *file.Options) { o.ToBase64 = true }),
	} {
		key, data := s.Canary()
		if err := s.Save(ctx, key, record(string(data)), store.IfAbsent); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Apache::Session::Redis has Base64 of what Apache::Session::File has, and the way back is exact.
func TestApacheSessionToBase64(t *testing.T) {
	p := newPerl(t, func(o *file.Options) { o.ToBase64 = true })
	id, _ := p.page("new", "count")
	got, err := p.s.Load(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("perl", "-MMIME::Base64", "-e", "local $/; open my $f, '<', $ARGV[0]; print encode_base64(<$f>)", filepath.Join(p.dir, id)).Output()
	if err != nil || string(out) != string(got.Data) {
		t.Errorf("Perl says %q, we %q, %v", out, got.Data, err)
	}
	other := strings.Repeat("ab", 16)
	if err := p.s.Save(ctx, id, got, store.IfVersion(got.Version())); err != nil {
		t.Error(err)
	}
	if err := p.s.Save(ctx, other, got, store.IfAbsent); err != nil {
		t.Error(err)
	}
	if _, n := p.page(other, "look"); n != "1" {
		t.Errorf("Perl saw %q", n)
	}
	for _, bad := range []string{"no Base64!\n", strings.TrimSpace(string(got.Data)), "QQ==", "QR==\n"} {
		if err := p.s.Save(ctx, other, record(bad), store.Always); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("Save of %q: %v", bad, err)
		}
	}
}

func TestApacheSessionURL(t *testing.T) {
	dir := t.TempDir()
	for raw, want := range map[string]string{
		"?layout=apache-session&lifetime=1h&lock_dir=" + dir:                 "",
		"?layout=apache-session&lifetime=1h&codec=to-base64&lock_dir=" + dir: "",
		"?layout=apache-session&lifetime=1h":                                 "lock_dir is needed",
		"?layout=apache-session&lifetime=1h&lock_dir=/nowhere/at/all":        "lock_dir: ",
		"?layout=apache-session&lifetime=1h&depth=1&lock_dir=" + dir:         "depth is PHP's",
		"?layout=php&lifetime=1h&lock_dir=" + dir:                            "layout=apache-session",
		"?layout=perl&lifetime=1h":                                           "the layouts are: php, apache-session",
		"?layout=apache-session&lifetime=1h&codec=base64&lock_dir=" + dir:    "of files there is to-base64",
	} {
		u, err := url.Parse("file://" + dir + raw)
		if err != nil {
			t.Fatal(err)
		}
		s, err := file.OpenURL(ctx, u)
		if err == nil {
			s.Close()
		}
		if (want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", raw, err, want)
		}
	}
}
