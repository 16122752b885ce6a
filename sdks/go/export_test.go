package aegisagent

import "time"

// What the tests reach beyond the package's surface.

// Hasten shortens the pauses between polls and repetitions, for tests that wait for many of them.
func Hasten(client *Client) {
	client.pace = pace{firstPause: 10 * time.Millisecond, firstPoll: 20 * time.Millisecond}
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
