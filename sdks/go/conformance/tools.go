//go:build tools

// Package conformance holds the SDK against what is not its own. It is a module of its own, so that the SDK needs none of these.
package conformance

// Named here, so that go.sum pins it.
import _ "honnef.co/go/tools/cmd/staticcheck"
