package rfc3339_test

import (
	"testing"

	"github.com/aegisagent/aegisagent-go/internal/proof"
	"github.com/aegisagent/aegisagent-go/internal/rfc3339"
)

// As the server's verifier has it, which reckons in UTC too.
func TestATimeIsOneOfTheYears1To9999WhereverItsClockStood(t *testing.T) {
	proof.Of(t, "verify-receipts")
	const first = -62_135_596_800_000_000
	for text, expected := range map[string]int64{
		"0001-01-01T00:00:00Z": first, "0001-01-01T01:00:00+01:00": first, "0001-01-01T00:00:00-01:00": first + 3_600_000_000,
		"1969-12-31T23:59:59.9999999Z": -1, "9999-12-31T23:59:59-23:59": 253_402_387_139_000_000,
	} {
		if found, isTime := rfc3339.Microseconds(text); !isTime || found != expected {
			t.Errorf("%s: %d, %t", text, found, isTime)
		}
	}
	for _, text := range []string{"0001-01-01T00:59:59.999999+01:00", "0001-01-01T00:00:00+00:01", "0000-12-31T23:59:59-00:01"} {
		if found, isTime := rfc3339.Microseconds(text); isTime {
			t.Errorf("%s: %d", text, found)
		}
	}
}
