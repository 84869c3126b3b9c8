package main

import (
	"testing"

	"github.com/sessile/sessile/examples/frameworks/scenario"
)

func TestShop(t *testing.T) { scenario.Run(t, newShop) }
