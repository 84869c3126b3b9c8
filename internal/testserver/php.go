package testserver

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// PHPBinary is a PHP for the command line that has the redis and igbinary extensions.
type PHPBinary struct {
	Path string

	t   testing.TB
	dir string
}

// PHP finds the PHP of this machine, with the further extensions that are named. Its sessions go to a folder of the test where the
// ini settings do not say otherwise.
func PHP(t testing.TB, extensions ...string) PHPBinary {
	t.Helper()
	p := PHPBinary{t: t, Path: find("php", "php[0-9]*")}
	Need(t, "php-cli", p.Path != "")
	needExtensions(t, "php-cli", p.Path, extensions...)
	p.dir = tempDir(t)
	return p
}

func needExtensions(t testing.TB, name, path string, further ...string) {
	t.Helper()
	out, err := exec.Command(path, "-m").Output()
	if err != nil {
		t.Fatalf("testserver: %s -m: %v", path, err)
	}
	for _, ext := range append([]string{"redis", "igbinary"}, further...) {
		Need(t, "php-"+ext+" ("+name+")", slices.Contains(strings.Fields(string(out)), ext))
	}
}

// Run runs script with ini settings and arguments and returns what it prints on stdout. A script that begins with
// "<?php" is code, any other is the path of a file. An exit status other than 0 fails the test.
func (p PHPBinary) Run(script string, ini map[string]string, args ...string) string {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	stdout, stderr, err := p.Try(ctx, script, ini, args...)
	if err != nil {
		p.t.Fatalf("testserver: php: %v\n%s%s", err, stdout, stderr)
	}
	return stdout
}

// Try is Run for a script that may fail; then the error is an *exec.ExitError. The end of ctx kills it.
func (p PHPBinary) Try(ctx context.Context, script string, ini map[string]string, args ...string) (stdout, stderr string, err error) {
	if strings.HasPrefix(script, "<?php") {
		f, err := os.CreateTemp(p.dir, "*.php")
		if err != nil {
			return "", "", err
		}
		defer os.Remove(f.Name())
		_, err = f.WriteString(script)
		if err := firstError(err, f.Close()); err != nil {
			return "", "", err
		}
		script = f.Name()
	}
	var line []string
	for _, setting := range iniLines(p.dir, ini) {
		line = append(line, "-d", setting.name+"="+setting.value)
	}
	line = append(line, "-f", script, "--")
	cmd := exec.Command(p.Path, append(line, args...)...)
	var outBuf, errBuf bytes.Buffer
	cmd.Stdout, cmd.Stderr = &outBuf, &errBuf
	proc, err := launch(cmd, syscall.SIGKILL)
	if err != nil {
		return "", "", err
	}
	select {
	case <-proc.done:
		err = proc.err
	case <-ctx.Done():
		err = firstError(proc.kill(), ctx.Err())
	}
	return outBuf.String(), errBuf.String(), err
}

type iniSetting struct{ name, value string }

// iniLines returns the settings in order, quoted for PHP's parser. Sessions in files go to dir by default: the
// system's folder is not ours.
func iniLines(dir string, ini map[string]string) []iniSetting {
	all := map[string]string{"session.save_path": dir}
	maps.Copy(all, ini)
	var lines []iniSetting
	for _, name := range slices.Sorted(maps.Keys(all)) {
		lines = append(lines, iniSetting{name, iniQuote(all[name])})
	}
	return lines
}

// iniQuote quotes a value for an ini file or -d: a bare one ends at ';' and computes with '&', '|' and '~', which
// save paths are full of. Nothing is special between single quotes.
func iniQuote(v string) string {
	if !strings.Contains(v, "'") {
		return "'" + v + "'"
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, `$`, `\$`).Replace(v) + `"`
}

// writeScript writes PHP code to name below root.
func writeScript(root, name, code string) error {
	path := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("script %s: %w", name, err)
	}
	return os.WriteFile(path, []byte(code), 0o644)
}
