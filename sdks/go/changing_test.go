package aegisagent_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"

	aegisagent "github.com/aegisagent/aegisagent-go"
	"github.com/aegisagent/aegisagent-go/internal/proof"
)

// What says one thing when it is asked first and another after that: contexts, answers, functions that share their arguments.

// changing is a context that forgets, once it has been asked for something, what it was made of.
type changing struct {
	context.Context
	asked atomic.Int64
}

func (c *changing) Value(key any) any {
	if c.asked.Add(1) > 1 {
		return nil
	}
	return c.Context.Value(key)
}

func TestTheOriginOfACallIsReadOnce(t *testing.T) {
	proof.Of(t, "trust-context")
	edge, ran := newFakeEdge(t), &recorder{}
	run, err := aegisagent.WithRun(context.Background(), "run-1")
	must(t, err)
	ctx := &changing{Context: aegisagent.WithSourceTrust(run, aegisagent.UntrustedExternal)}
	_, err = protect(t, clientTo(t, edge.URL), usual, ran.run)(ctx, note{"a", 1})
	must(t, err)
	asked := edge.sent("authorize")[0]
	equal(t, asked["context"].(map[string]any)["source_trust"], any("untrusted_external"))
	equal(t, asked["trace"].(map[string]any)["run_id"], any("run-1"))
}

func TestAResourceThatChangesWhatItIsShownChangesNothing(t *testing.T) {
	proof.Of(t, "protect-freeze")
	edge, settings, got := newFakeEdge(t), usual, map[string]any(nil)
	settings.Resource = ""
	settings.ResourceOf = func(parameters map[string]any) string {
		parameters["amount"] = 1000
		parameters["tags"].([]any)[0] = "evil"
		return parameters["order"].(string)
	}
	protected := protect(t, clientTo(t, edge.URL), settings, func(_ context.Context, parameters map[string]any) (int, error) {
		got = parameters
		return 0, nil
	})
	_, err := protected(context.Background(), map[string]any{"order": "order-7", "amount": 5, "tags": []any{"a"}})
	must(t, err)
	equal(t, got, map[string]any{"order": "order-7", "amount": 5, "tags": []any{"a"}})
	call := edge.sent("authorize")[0]["tool_call"].(map[string]any)
	equal(t, call["resource"], any("order-7"))
	equal(t, call["parameters"], any(map[string]any{"order": "order-7", "amount": 5, "tags": []any{"a"}}))
}

// Each call's parameters are its own, also where functions write to them and an approver's word comes while they do.
func TestCallsAtOnceShareNothing(t *testing.T) {
	proof.Of(t, "protect-freeze")
	edge := newFakeEdge(t)
	edge.decision = "require_approval"
	shared := []any{map[string]any{"n": 0}}
	protected := protect(t, clientTo(t, edge.URL), usual, func(_ context.Context, parameters map[string]any) (int, error) {
		number := parameters["number"].(int)
		inner := parameters["shared"].([]any)[0].(map[string]any)
		was := inner["n"].(int)
		inner["n"] = number
		parameters["number"] = -1
		return number + was, nil
	})
	const calls = 50
	results := make(chan [2]int, calls)
	for number := range calls {
		go func() {
			result, err := protected(context.Background(), map[string]any{"number": number, "shared": shared})
			if err != nil {
				result = -1
			}
			results <- [2]int{number, result}
		}()
	}
	for range calls {
		if result := <-results; result[0] != result[1] {
			t.Errorf("call %d made %d", result[0], result[1])
		}
	}
	equal(t, shared, []any{map[string]any{"n": 0}})
}

func TestATrustTokenThatNoServerTakesBackIsADenialAndIsNotKept(t *testing.T) {
	proof.Of(t, "hostile-garbage")
	edge, ran := newFakeEdge(t), &recorder{}
	protected := protect(t, clientTo(t, edge.URL), usual, ran.run)
	edge.replace["authorize"] = changed(map[string]any{"trust_token": strings.Repeat("x", 4097)})
	_, err := protected(context.Background(), note{"a", 1})
	deniedAs(t, err, aegisagent.DeniedUnverified, "bad_reply")
	equal(t, len(ran.ran()), 0)
	edge.replace["authorize"] = changed(map[string]any{"trust_token": strings.Repeat("x", 4096)})
	for range 2 {
		_, err = protected(context.Background(), note{"a", 1})
		must(t, err)
	}
	sent := []int{}
	for _, asked := range edge.sent("authorize") {
		token, _ := asked["trace"].(map[string]any)["trust_token"].(string)
		sent = append(sent, len(token))
	}
	equal(t, sent, []int{0, 0, 4096})
}
