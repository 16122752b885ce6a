package aegisagent

import (
	"context"
	"sync"
	"time"
)

// What the tests reach beyond the package's surface.

// Hasten shortens the pauses between polls and repetitions, for tests that wait for many of them.
func Hasten(client *Client) {
	client.pace.firstPause, client.pace.firstPoll = 10*time.Millisecond, 20*time.Millisecond
}

// RecordPauses has a client make no pauses, of their usual lengths, and gives those that it would have made so far. chance is how far each
// is spread, from 0 to 1.
func RecordPauses(client *Client, chance float64) func() []time.Duration {
	var mutex sync.Mutex
	pauses := []time.Duration{}
	client.pace = usualPace
	client.pace.chance = func() float64 { return chance }
	client.pace.sleep = func(ctx context.Context, pause time.Duration) error {
		mutex.Lock()
		defer mutex.Unlock()
		pauses = append(pauses, pause)
		return ctx.Err()
	}
	return func() []time.Duration {
		mutex.Lock()
		defer mutex.Unlock()
		return append([]time.Duration{}, pauses...)
	}
}

// ReadConsumed and ReadDecision are the readers of two answers.
var (
	ReadConsumed = readConsumed
	ReadDecision = readDecision
)

// RunTokens is the memory of runs.
type RunTokens = runTokens

// Keep and Get reach it.
func (r *runTokens) Keep(runID string, label SourceTrust, token string) { r.keep(runID, label, token) }
func (r *runTokens) Get(runID string) string                            { return r.get(runID) }
