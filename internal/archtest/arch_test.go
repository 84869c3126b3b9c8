// Package archtest holds the walls of the house: which package may import which. It is only a test.
//
// Imports point inward: cmd -> config, gateway, admin -> migrate -> store <- back ends. Who wants to move a wall changes
// the table in this file, in the commit that says why.
package archtest

import (
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/sessile/sessile"

// rule says what a package may import besides the standard library. Packages of ours are named relative to the module
// root ("." is the root), those of others by their full path; "x/..." is x and everything below it.
type rule struct {
	may   []string
	tests []string // in test files, besides may and what every test may
	why   string
}

const anything = "..." // whatever there is, but for cmd

// mayImport has a rule for each package; one that does not exist yet does no harm. The pattern "x/..." is for the packages
// below x that have no rule of their own.
var mayImport = map[string]rule{
	".": {may: []string{"store"}, tests: []string{"store/...", "github.com/apache/cassandra-gocql-driver/v2"},
		why: "programs that import the library link only the back ends that they name; examples name some"},

	"store": {why: "the contract: everybody knows it, so it knows nobody"},
	"store/storetest": {may: []string{"store", "pgregory.net/rapid"},
		why: "every store passes it, in this repository and in others"},
	"store/memory":    {may: []string{"store", "internal/guard"}, why: backEnd},
	"store/file":      {may: []string{"store", "internal/guard", "golang.org/x/sys/unix"}, why: backEnd},
	"store/redis":     {may: []string{"store", "internal/guard", "internal/resp", "github.com/redis/rueidis/..."}, why: backEnd},
	"store/memcached": {may: []string{"store", "internal/memcache", "internal/param"}, why: backEnd},
	"store/cassandra": {may: []string{"store", "internal/param", "github.com/apache/cassandra-gocql-driver/v2/..."}, why: backEnd},
	"store/cached": {may: []string{"store"}, tests: []string{"store/memcached", "store/sqltable"},
		why: "it stands before any store and gets both from its caller"},
	"store/sqltable": {may: []string{"store", "github.com/go-sql-driver/mysql", "github.com/jackc/pgx/v5/..."},
		tests: []string{"internal/testapp"}, why: backEnd},
	"store/open": {may: []string{"store/...", "internal/memcache"},
		why: "the only place that knows every back end by name"},

	"migrate": {may: []string{"store", "internal/guard"},
		why: "the engine works with any two stores, so it names none; its tests have store/memory"},

	"internal/recorder": {why: "it judges from outside, so it shares nothing with what it judges"},
	"internal/guard":    {why: "whatever obeys a guard imports it"},
	"internal/param":    {why: "a back end reads its URL with it, before there is a store"},
	"internal/resp":     {why: "bytes to commands and back; no sockets, no stores"},
	"internal/memcache": {why: "bytes to commands and back; no sockets, no stores"},
	"internal/gateway": {may: []string{"store", "internal/resp", "internal/memcache", "golang.org/x/sys/unix"},
		tests: []string{"store/...", "migrate", "internal/testapp"},
		why:   "commands become calls of store.Store; whether a migration is behind it must make no difference"},
	"internal/admin": {may: []string{"store", "migrate", "github.com/prometheus/client_golang/..."},
		tests: []string{"store/..."},
		why:   "it shows and drives the engine, whatever the stores are"},
	"internal/config": {may: []string{"store", "store/open", "migrate", "github.com/goccy/go-yaml/..."},
		tests: []string{"store/..."},
		why:   "settings become sites; what runs them is put together in cmd"},
	"internal/doctor": {may: []string{"store", "store/redis", "internal/resp"},
		why: "it asks the servers of a store by itself; what a store's options are, store/redis says"},
	"internal/demo":       {may: []string{anything}, why: "the whole move in one process"},
	"internal/testserver": {may: []string{"golang.org/x/sys/unix"}, why: "tests of every package use it, so it knows none"},
	"internal/testapp": {may: []string{"internal/testserver"},
		why: "it runs other people's session libraries, and judges ours from outside"},
	"internal/archtest": {why: "it looks at all packages from outside"},

	"cmd/sessile":  {may: []string{anything}, why: "here the parts are put together"},
	"examples/...": {may: []string{".", "store/..."}, why: "an example has what a user of the library has"},
	"spec/...":     {why: "the model judges the code, so it shares nothing with it"},
}

const backEnd = "a back end knows the contract and its own client library, and no other back end"

// everyTest is what tests may import anywhere.
var everyTest = []string{
	"internal/testserver", "store", "store/memory", "store/storetest",
	"github.com/anishathalye/porcupine", "go.uber.org/goleak", "pgregory.net/rapid",
}

// imported is one import of one file.
type imported struct {
	file string // relative to the module root
	path string
}

func TestImportsPointInward(t *testing.T) {
	imports, err := readImports("../..")
	if err != nil {
		t.Fatal(err)
	}
	if len(imports) == 0 {
		t.Fatal("found no Go file")
	}
	for _, broken := range check(imports, mayImport) {
		t.Error(broken)
	}
}

// readImports returns the imports of all Go files of the module at root, whatever their build constraints. It reads the
// files itself: so the go command knows what the result depends on, and caches it no longer than it is true.
func readImports(root string) ([]imported, error) {
	var all []imported
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // a temporary file, gone again
			}
			return err
		}
		if d.IsDir() {
			if name == root {
				return nil
			}
			if base := d.Name(); base == "testdata" || strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_") {
				return filepath.SkipDir
			}
			if _, err := os.Stat(filepath.Join(name, "go.mod")); err == nil {
				return filepath.SkipDir // a module of its own
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		file, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		file = filepath.ToSlash(file)
		if len(f.Imports) == 0 {
			all = append(all, imported{file: file}) // its package needs a rule all the same
		}
		for _, spec := range f.Imports {
			imp, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			all = append(all, imported{file, imp})
		}
		return nil
	})
	return all, err
}

// check returns a sentence for each import that the rules forbid and for each package without a rule.
func check(imports []imported, rules map[string]rule) []string {
	broken := map[string]bool{}
	for _, i := range imports {
		pkg := path.Dir(i.file)
		r, ok := ruleFor(pkg, rules)
		if !ok {
			broken[fmt.Sprintf("%s has no rule: say in mayImport of internal/archtest what it may import, and why", pkg)] = true
			continue
		}
		target, ours := relative(i.path)
		if !ours && isStandard(i.path) {
			continue
		}
		if ours && below("cmd", target) {
			broken[fmt.Sprintf("%s imports %s: nothing imports cmd", i.file, target)] = true
			continue
		}
		allowed := r.may
		if strings.HasSuffix(i.file, "_test.go") {
			// A test in a package of its own (package x_test) imports the package under test.
			allowed = slices.Concat(r.may, r.tests, everyTest, []string{pkg})
		}
		if !slices.ContainsFunc(allowed, func(pattern string) bool { return matches(pattern, target) }) {
			broken[fmt.Sprintf("%s imports %s, which %s may not: %s", i.file, target, pkg, r.why)] = true
		}
	}
	return slices.Sorted(maps.Keys(broken))
}

func ruleFor(pkg string, rules map[string]rule) (rule, bool) {
	if r, ok := rules[pkg]; ok {
		return r, true
	}
	for dir := pkg; dir != "."; dir = path.Dir(dir) {
		if r, ok := rules[dir+"/..."]; ok {
			return r, true
		}
	}
	return rule{}, false
}

// relative returns the name of a package of ours relative to the module root, and any other as it is.
func relative(imp string) (name string, ours bool) {
	if imp == module {
		return ".", true
	}
	if name, ok := strings.CutPrefix(imp, module+"/"); ok {
		return name, true
	}
	return imp, false
}

// isStandard: only the standard library has no dot in the first element of its paths ("C" included).
func isStandard(imp string) bool {
	first, _, _ := strings.Cut(imp, "/")
	return !strings.Contains(first, ".")
}

func below(dir, name string) bool { return name == dir || strings.HasPrefix(name, dir+"/") }

func matches(pattern, name string) bool {
	if pattern == anything {
		return true
	}
	if dir, ok := strings.CutSuffix(pattern, "/..."); ok {
		return below(dir, name)
	}
	return pattern == name
}

func TestForbiddenImportsAreDetected(t *testing.T) {
	cases := []struct {
		name string
		file string
		imp  string
		want string // part of the complaint; empty means allowed
	}{
		{"std everywhere", "store/store.go", "net/http", ""},
		{"store imports nothing of ours", "store/store.go", module + "/migrate", "store may not"},
		{"store imports nothing of others", "store/store.go", "github.com/redis/rueidis", "store may not"},
		{"resp imports no sockets of others", "internal/resp/resp.go", "golang.org/x/sys/unix", "internal/resp may not"},
		{"memcache does not import store", "internal/memcache/text.go", module + "/store", "internal/memcache may not"},
		{"a back end imports its client", "store/redis/redis.go", "github.com/redis/rueidis/rueidislimiter", ""},
		{"a back end imports no other client", "store/file/file.go", "github.com/redis/rueidis", "store/file may not"},
		{"a back end imports no other back end", "store/redis/redis.go", module + "/store/memory", "store/redis may not"},
		{"its tests may use the memory store", "store/redis/redis_test.go", module + "/store/memory", ""},
		{"open imports every back end", "store/open/open.go", module + "/store/sqltable", ""},
		{"the engine imports store", "migrate/engine.go", module + "/store", ""},
		{"the engine imports no back end", "migrate/engine.go", module + "/store/memory", "migrate may not"},
		{"its tests import memory", "migrate/engine_test.go", module + "/store/memory", ""},
		{"its tests import no other back end", "migrate/engine_test.go", module + "/store/redis", "migrate may not"},
		{"the library imports store", "session.go", module + "/store", ""},
		{"the library imports no back end", "session.go", module + "/store/redis", ". may not"},
		{"its examples import back ends", "example_test.go", module + "/store/redis", ""},
		{"a test imports its own package", "session_test.go", module, ""},
		{"nothing else imports the library", "migrate/engine.go", module, "migrate may not"},
		{"the gateway imports resp", "internal/gateway/conn.go", module + "/internal/resp", ""},
		{"the gateway does not import migrate", "internal/gateway/conn.go", module + "/migrate", "internal/gateway may not"},
		{"code imports no test helper", "internal/gateway/conn.go", module + "/internal/testserver", "internal/gateway may not"},
		{"the demo imports anything", "internal/demo/demo.go", module + "/internal/gateway", ""},
		{"but not cmd", "internal/demo/demo.go", module + "/cmd/sessile", "nothing imports cmd"},
		{"nor do tests", "migrate/engine_test.go", module + "/cmd/sessile", "nothing imports cmd"},
		{"cmd imports any library", "cmd/sessile/main.go", "github.com/spf13/cobra", ""},
		{"a neighbour's name is not below", "store/open/open.go", module + "/storeroom", "store/open may not"},
		{"a package below a rule with dots has it", "examples/shop/main.go", module + "/store/redis", ""},
		{"an unknown package asks for a rule", "internal/util/util.go", "", "internal/util has no rule"},
		{"so does one below a known one", "store/redis/internal/x/x.go", "fmt", "has no rule"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got := strings.Join(check([]imported{{c.file, c.imp}}, mayImport), "\n")
			if c.want == "" && got != "" || !strings.Contains(got, c.want) {
				t.Errorf("%s importing %q: got %q, want %q", c.file, c.imp, got, c.want)
			}
		})
	}
}

func TestReadImports(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{
		"go.mod":                  "module " + module,
		"store/store.go":          "package store\nimport \"" + module + "/migrate\"\n",
		"store/other_plan9.go":    "//go:build plan9\n\npackage store\nimport x \"example.org/x\"\n",
		"store/empty.go":          "package store\n",
		"store/testdata/x.go":     "package broken !",
		"tools/go.mod":            "module tools",
		"tools/tools.go":          "package tools\nimport \"example.org/tool\"\n",
		".cache/x.go":             "package broken !",
		"store/readme.go.md":      "no Go",
		"cmd/sessile/main.go":     "package main\nimport (\n\t\"fmt\"\n\t_ \"embed\"\n)\n",
		"_scratch/sub/scratch.go": "package broken !",
	} {
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := readImports(root)
	if err != nil {
		t.Fatal(err)
	}
	want := []imported{
		{"cmd/sessile/main.go", "fmt"}, {"cmd/sessile/main.go", "embed"},
		{"store/empty.go", ""},
		{"store/other_plan9.go", "example.org/x"},
		{"store/store.go", module + "/migrate"},
	}
	if !slices.Equal(got, want) {
		t.Errorf("readImports: got %v, want %v", got, want)
	}
	if broken := check(got, mayImport); len(broken) != 2 {
		t.Errorf("check: got %q, want both imports of store", broken)
	}
}

func TestEveryRuleHasAReason(t *testing.T) {
	for pkg, r := range mayImport {
		if r.why == "" {
			t.Errorf("%s: the rule does not say why", pkg)
		}
	}
}
