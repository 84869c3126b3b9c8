//go:build !linux

package testserver

import (
	"errors"
	"os"
)

func thisNamespace() (*os.File, error) { return nil, errors.ErrUnsupported }

func newNamespace() (*os.File, error) { return nil, errors.ErrUnsupported }

func inNamespace(*os.File, func()) error { return errors.ErrUnsupported }
