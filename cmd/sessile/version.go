package main

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// release is set by the linker: -X main.release=v1.2.3.
var release string

func version() string {
	if release != "" {
		return release
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

func (a *app) version() *cobra.Command {
	cmd := a.leaf(&cobra.Command{Use: "version", Short: "Print the version"}, func(context.Context, []string) error {
		v := struct {
			Version string `json:"version"`
			Go      string `json:"go"`
			System  string `json:"system"`
		}{version(), runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH}
		if a.json {
			a.print(v)
		} else {
			fmt.Fprintln(a.out, "sessile", v.Version, v.Go, v.System)
		}
		return nil
	})
	cmd.Flags().BoolVar(&a.json, "json", false, "print one JSON object")
	return cmd
}
