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

// Readers are those of every model, by the model's name.
var Readers = map[string]func(any) (any, error){
	"ToolCall": ofFields(readToolCall), "ReceiptRef": ofFields(readReceiptRef), "ApprovalRef": ofFields(readApprovalRef), "Hold": ofFields(readHold),
	"ContainedEdges": ofFields(readContainedEdges), "Decision": ofValue(readDecision), "Approval": ofValue(readApproval),
	"Consumed": ofValue(readConsumed), "Outcome": ofValue(readOutcome), "Registration": ofValue(readRegistration),
	"Containment": ofValue(readContainment), "ReceiptVerdict": ofValue(readReceiptVerdict),
}

func ofValue[T any](read func(any) (T, error)) func(any) (any, error) {
	return func(value any) (any, error) { return read(value) }
}

func ofFields[T any](read func(fields) T) func(any) (any, error) {
	return func(value any) (any, error) {
		f := fieldsOf(value, "it")
		made := read(f)
		return made, f.err()
	}
}

// RunTokens is the memory of runs.
type RunTokens = runTokens

// Keep and Get reach it.
func (r *runTokens) Keep(runID string, label SourceTrust, token string) { r.keep(runID, label, token) }
func (r *runTokens) Get(runID string) string                            { return r.get(runID) }
