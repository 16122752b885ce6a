// Package proof is for this module's tests: which features of sdks/features.json a test proves.
package proof

import (
	"strings"
	"testing"
)

// Mark begins a line of a test's output that names features. internal/cmd/proved reads it.
const Mark = "proves: "

// Of says which features a test proves, if it passes.
func Of(t testing.TB, features ...string) {
	t.Helper()
	t.Log(Mark + strings.Join(features, " "))
}
