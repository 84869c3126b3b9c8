package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// maxFile is more than any configuration needs, and little enough for a parser whose time grows with the square of the
// nesting.
const maxFile = 256 << 10

// file is what a configuration file says, as text: the settings' own readers make values of it, as they do of flags.
type file struct {
	path   string
	info   fs.FileInfo
	secret bool // there is a password in it
	daemon map[string]said
	sites  []map[string]said
}

// readFile reads the configuration file, if there is one.
//
//	admin: 127.0.0.1:6480          # of the daemon
//	listen: redis://127.0.0.1:6400 # of the one site; several are a list under sites:
//	users:
//	  - name: default
//	    password-file: /run/secrets/sessions
func (c *Config) readFile(src Sources) (*file, error) {
	f := &file{path: src.File, daemon: map[string]said{}}
	if src.File == "" {
		return f, nil
	}
	r, err := os.Open(src.File)
	if src.Optional && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission)) {
		return f, nil
	}
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if f.info, err = r.Stat(); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	switch {
	case err != nil:
		return nil, err
	case len(b) > maxFile:
		return nil, fmt.Errorf("%s: larger than %d bytes: is it the right file?", f.path, maxFile)
	case !utf8.Valid(b) || bytes.ContainsAny(b, "\x00\ufeff"):
		return nil, fmt.Errorf("%s: not plain UTF-8 text (NUL bytes, a byte order mark or another encoding)", f.path)
	}
	tree, err := parser.ParseBytes(b, 0)
	if err != nil {
		// The text of a syntax error quotes the lines around it, and there may be a password on them.
		if y := yaml.Error(nil); errors.As(err, &y) {
			return nil, fmt.Errorf("%s:%d: %s", f.path, y.GetToken().Position.Line, strings.TrimSpace(y.GetMessage()))
		}
		return nil, fmt.Errorf("%s: not YAML", f.path)
	}
	if len(tree.Docs) > 1 {
		return nil, fmt.Errorf("%s: several documents (---) in one file", f.path)
	}
	if len(tree.Docs) == 0 || tree.Docs[0].Body == nil {
		return f, nil
	}
	if err := f.readTop(tree.Docs[0].Body); err != nil {
		return nil, err
	}
	return f, nil
}

func (f *file) errorf(n ast.Node, format string, args ...any) error {
	return fmt.Errorf("%s: %w", f.where(n), fmt.Errorf(format, args...))
}

func (f *file) where(n ast.Node) string {
	return fmt.Sprintf("%s:%d", f.path, n.GetToken().Position.Line)
}

func names(settings []Setting) map[string]Setting {
	m := map[string]Setting{}
	for _, s := range settings {
		m[s.Name] = s
	}
	return m
}

func (f *file) readTop(n ast.Node) error {
	daemon, site := names(daemonSettings), names(siteSettings)
	one := map[string]said{}
	var listed, single ast.Node
	known := slices.Concat(slices.Collect(maps.Keys(daemon)), slices.Collect(maps.Keys(site)), []string{"sites"})
	err := f.pairs(n, known, func(key string, k, v ast.Node) error {
		if key == "sites" {
			listed = k
			return f.items(key, v, func(item ast.Node) error {
				own := map[string]said{}
				f.sites = append(f.sites, own)
				return f.pairs(item, slices.Collect(maps.Keys(site)), func(key string, k, v ast.Node) error {
					return f.setting(own, site[key], k, v)
				})
			})
		}
		if s, ok := daemon[key]; ok {
			return f.setting(f.daemon, s, k, v)
		}
		single = k
		return f.setting(one, site[key], k, v)
	})
	switch {
	case err != nil:
		return err
	case listed != nil && single != nil:
		return f.errorf(single, "with sites: below it, %s belongs to one of them", single.GetToken().Value)
	case listed != nil && len(f.sites) > 1:
		for _, own := range f.sites {
			if own["name"].where == "" {
				return f.errorf(listed, "each of several sites needs a name")
			}
		}
	case single != nil:
		f.sites = []map[string]said{one}
	}
	return nil
}

// setting reads what one key says.
func (f *file) setting(into map[string]said, s Setting, k, v ast.Node) error {
	value := said{where: f.where(k)}
	if s.Name == "users" {
		var err error
		value.values, err = f.users(v)
		into[s.Name] = value
		return err
	}
	add := func(n ast.Node) error {
		text, err := f.scalar(s.Name, n)
		value.values = append(value.values, text)
		f.secret = f.secret || err == nil && hasSecret(s.Name, []string{text})
		return err
	}
	var err error
	if _, ok := v.(*ast.SequenceNode); ok && s.List {
		err = f.items(s.Name, v, add)
	} else {
		err = add(v)
	}
	into[s.Name] = value
	return err
}

// users makes name:password of the file's form.
func (f *file) users(v ast.Node) (all []string, err error) {
	err = f.items("users", v, func(item ast.Node) error {
		name, passwords := "default", []string(nil)
		add := func(n ast.Node) error {
			text, err := f.scalar("password", n)
			if err == nil && text == "" {
				err = f.errorf(n, "an empty password")
			}
			passwords, f.secret = append(passwords, text), true
			return err
		}
		err := f.pairs(item, []string{"name", "password", "passwords", "password-file"}, func(key string, k, v ast.Node) (err error) {
			switch key {
			case "name":
				name, err = f.scalar(key, v)
				if err == nil && (name == "" || strings.ContainsAny(name, ": \t\r\n")) {
					err = f.errorf(v, "a user's name has neither spaces nor a colon")
				}
			case "password":
				err = add(v)
			case "passwords":
				err = f.items(key, v, add)
			case "password-file":
				var path, lines string
				if path, err = f.scalar(key, v); err != nil {
					return err
				}
				if lines, err = readSecret(path); err != nil {
					return f.errorf(v, "password-file: %w", err)
				}
				for line := range strings.Lines(lines) {
					if line = strings.TrimRight(line, "\r\n"); line != "" {
						passwords = append(passwords, line)
					}
				}
			}
			return err
		})
		if err == nil && len(passwords) == 0 {
			err = f.errorf(item, "a user without password, passwords or password-file")
		}
		for _, p := range passwords {
			all = append(all, name+":"+p)
		}
		return err
	})
	return all, err
}

// pairs calls each with the keys and values of a mapping, and refuses a key that is not known.
func (f *file) pairs(n ast.Node, known []string, each func(key string, k, v ast.Node) error) error {
	m, ok := n.(*ast.MappingNode)
	if !ok {
		return f.errorf(n, "key: value is wanted here")
	}
	for _, pair := range m.Values {
		key := pair.Key.GetToken().Value
		if _, plain := pair.Key.(*ast.StringNode); !plain || !slices.Contains(known, key) {
			near, _ := nearest(key, known)
			return f.errorf(pair.Key, "there is no setting %+q; did you mean %s?", key, near)
		}
		if err := each(key, pair.Key, pair.Value); err != nil {
			return err
		}
	}
	return nil
}

func (f *file) items(key string, n ast.Node, each func(ast.Node) error) error {
	s, ok := n.(*ast.SequenceNode)
	if !ok {
		return f.errorf(n, "%s: a list is wanted here", key)
	}
	for _, item := range s.Values {
		if err := each(item); err != nil {
			return err
		}
	}
	return nil
}

// scalar returns a value as it is written: 0644, 1_000 and no are what stands there, not what YAML makes of them.
func (f *file) scalar(key string, n ast.Node) (string, error) {
	switch n := n.(type) {
	case *ast.LiteralNode:
		return n.Value.Value, nil
	case *ast.StringNode, *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return n.GetToken().Value, nil
	case *ast.NullNode:
		return "", f.errorf(n, "%s: has no value", key)
	case *ast.AnchorNode, *ast.AliasNode, *ast.TagNode:
		return "", f.errorf(n, "%s: anchors, aliases and tags are not understood here", key)
	}
	return "", f.errorf(n, "%s: takes one value", key)
}

// guardSecrets refuses a file with a password in it that everybody can read.
func (f *file) guardSecrets() error {
	if !f.secret {
		return nil
	}
	return private(f.path, f.info)
}
