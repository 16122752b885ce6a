package aegisagent_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	aegisagent "github.com/aegisagent/aegisagent-go"
	"github.com/aegisagent/aegisagent-go/internal/proof"
)

// What is asked again, and how often.

func TestAnAuthorizeCallIsRepeatedWordForWordAndOnlySoOften(t *testing.T) {
	proof.Of(t, "retries")
	edge := newFakeEdge(t)
	edge.always("authorize", answer{status: 503, body: refusal("busy"), headers: map[string]string{"Retry-After": "99999999999999999999"}})
	deniedAs(t, attack(t, edge, 10*time.Second), aegisagent.DeniedUnavailable, "busy")
	asked := edge.seen()
	equal(t, len(asked), 3)
	for _, one := range asked {
		equal(t, string(one.body), string(asked[0].body))
	}
	if id, _ := edge.sent("authorize")[0]["request_id"].(string); len(id) != 32 {
		t.Fatal(id)
	}
	edge.forget()
	edge.always("authorize", raw(0, ""))
	deniedAs(t, attack(t, edge, 10*time.Second), aegisagent.DeniedUnavailable, "no_answer")
	equal(t, len(edge.seen()), 3)
}

func TestAnEmptyRequestIDIsNeverSent(t *testing.T) {
	proof.Of(t, "retries")
	edge := newFakeEdge(t)
	client := clientTo(t, edge.URL)
	for _, options := range []aegisagent.AuthorizeOptions{{}, {Fields: aegisagent.JSON{"request_id": ""}}, {RequestID: "one"}} {
		_, err := client.Authorize(context.Background(), aegisagent.ToolCall{Tool: "t", Action: "a"}, options)
		must(t, err)
	}
	sent := edge.sent("authorize")
	equal(t, len(sent), 3)
	for n, wanted := range []any{nil, nil, "one"} {
		equal(t, sent[n]["request_id"], wanted)
	}
}

func TestARetryAfterBeyondTheDeadlineEndsTheCall(t *testing.T) {
	proof.Of(t, "retries")
	edge := newFakeEdge(t)
	edge.always("authorize", answer{status: 503, body: refusal("busy"), headers: map[string]string{"Retry-After": "3600"}})
	deniedAs(t, attack(t, edge, 2*time.Second), aegisagent.DeniedUnavailable, "busy")
	equal(t, len(edge.seen()), 1)
}

func TestAConsumeThatNoServerCouldDoYetIsRepeatedUnderItsOneKey(t *testing.T) {
	proof.Of(t, "retries")
	keys := map[string]bool{}
	for _, code := range []string{"control_busy", "receipt_unavailable", "receipt_pending", "control_unreachable", "store_unavailable"} {
		edge := newFakeEdge(t)
		edge.decision = "require_approval"
		edge.always("consume", answer{status: 503, body: refusal(code)})
		deniedAs(t, attack(t, edge, 10*time.Second), aegisagent.DeniedUnavailable, code)
		keys[sentAgain(t, edge, "consume", 3, 3)] = true
	}
	equal(t, len(keys), 5)
}

// sentAgain sees that one request was sent so often, at least and at most, with the same bytes each time; its key.
func sentAgain(t *testing.T, edge *fakeEdge, name string, least, most int) string {
	t.Helper()
	asked := edge.sent(name)
	if len(asked) < least || len(asked) > most {
		t.Fatal(name, "was sent", len(asked), "times")
	}
	for _, one := range asked {
		equal(t, one, asked[0])
	}
	key, _ := asked[0]["request_id"].(string)
	if len(key) != 32 {
		t.Fatal("no key:", key)
	}
	return key
}

func TestTwoCallsAreTwoRequests(t *testing.T) {
	proof.Of(t, "retries")
	edge, ran := newFakeEdge(t), &recorder{}
	protected := protect(t, clientTo(t, edge.URL), usual, ran.run)
	for range 2 {
		_, err := protected(context.Background(), note{})
		must(t, err)
	}
	sent := edge.sent("authorize")
	if sent[0]["request_id"] == sent[1]["request_id"] || len(ran.ran()) != 2 {
		t.Fatal(sent)
	}
}

// The two ends of how far a pause is spread: 0.8 and 1.2 times as long.
var spreads = map[float64]float64{0: 0.8, 1: 1.2}

func near(found, expected time.Duration) bool {
	return found >= expected-time.Microsecond && found <= expected+time.Microsecond
}

func scaled(pause time.Duration, by float64) time.Duration { return time.Duration(float64(pause) * by) }

func TestAPauseIsSpreadAndNeverShorterThanWhatWasAskedFor(t *testing.T) {
	proof.Of(t, "retries")
	edge := newFakeEdge(t)
	ask := func(timeout time.Duration, chance float64, retryAfter string) []time.Duration {
		t.Helper()
		client := clientOf(t, aegisagent.Config{BaseURL: edge.URL, Timeout: timeout})
		pauses := aegisagent.RecordPauses(client, chance)
		edge.always("other", answer{status: 503, body: refusal("busy"), headers: map[string]string{"Retry-After": retryAfter}})
		_, err := client.Summary(context.Background())
		refused(t, err, 503, "busy")
		return pauses()
	}
	for chance, by := range spreads {
		for asked, expected := range map[string][2]time.Duration{
			"": {scaled(100*time.Millisecond, by), scaled(200*time.Millisecond, by)}, "0": {scaled(100*time.Millisecond, by), scaled(200*time.Millisecond, by)},
			"1": {time.Second, time.Second}, "2": {2 * time.Second, 2 * time.Second}, "900": {2 * time.Second, 2 * time.Second},
		} {
			found := ask(time.Minute, chance, asked)
			if len(found) != 2 || !near(found[0], expected[0]) || !near(found[1], expected[1]) {
				t.Errorf("asked for %q, spread by %v: %v, expected %v", asked, by, found, expected)
			}
		}
		// A pause that the deadline leaves no room for is not begun.
		equal(t, ask(1900*time.Millisecond, chance, "2"), []time.Duration{})
	}
}

func TestLooksAtAnApprovalComeLessAndLessOftenUntilTheLongestPause(t *testing.T) {
	proof.Of(t, "protect-approval")
	for chance, by := range spreads {
		edge, ran := newFakeEdge(t), &recorder{}
		edge.decision, edge.statuses = "require_approval", []string{}
		for range 12 {
			edge.statuses = append(edge.statuses, "PENDING")
		}
		edge.statuses = append(edge.statuses, "APPROVED")
		client := clientTo(t, edge.URL)
		pauses := aegisagent.RecordPauses(client, chance)
		_, err := protect(t, client, usual, ran.run)(context.Background(), note{"a", 1})
		must(t, err)
		found, expected := pauses(), 250*time.Millisecond
		equal(t, len(found), 12)
		for place, pause := range found {
			if !near(pause, scaled(expected, by)) {
				t.Errorf("pause %d is %v, expected %v spread by %v", place, pause, expected, by)
			}
			expected = min(scaled(expected, 1.5), 5*time.Second)
		}
		if !near(found[11], scaled(5*time.Second, by)) {
			t.Error("the last pause is not the longest:", found)
		}
	}
}

// How often each call is sent where its answer is cut off, and where the server says that it is busy, that nothing was changed, or not now.
func TestOnlyWhatMayTakeEffectTwiceIsSentAgain(t *testing.T) {
	proof.Of(t, "retries")
	busy := func(code string) answer { return answer{status: 503, body: refusal(code)} }
	answers := []struct {
		name         string
		said         answer
		safe, unsafe int
	}{
		{"cut off", broken["broken off"], 3, 1}, {"503 busy", busy("busy"), 3, 1}, {"503 control_busy", busy("control_busy"), 3, 3},
		{"503 receipt_unavailable", busy("receipt_unavailable"), 3, 3}, {"429", serverErrors[429], 3, 3}, {"500", serverErrors[500], 1, 1},
		{"409", serverErrors[409], 1, 1}, {"garbage", answer{status: 200, body: []byte("<html>")}, 1, 1},
	}
	action, hash := aegisagent.ToolCall{Tool: "t", Action: "a"}, otherHash()
	type calling func(context.Context, *aegisagent.Client) error
	contained := func(ask func(*aegisagent.Client, context.Context, string, string) (aegisagent.Containment, error)) calling {
		return func(ctx context.Context, client *aegisagent.Client) error {
			_, err := ask(client, ctx, "i", "r")
			return err
		}
	}
	held := func(ask func(*aegisagent.Client, context.Context, string, string, int) (aegisagent.Containment, error)) calling {
		return func(ctx context.Context, client *aegisagent.Client) error {
			_, err := ask(client, ctx, "i", "r", 60)
			return err
		}
	}
	authorizing := func(options aegisagent.AuthorizeOptions) calling {
		return func(ctx context.Context, client *aegisagent.Client) error {
			_, err := client.Authorize(ctx, action, options)
			return err
		}
	}
	for name, one := range map[string]struct {
		isSafe bool
		call   calling
	}{
		"approve": {false, func(ctx context.Context, c *aegisagent.Client) error {
			_, err := c.Approve(ctx, "i", hash, "r")
			return err
		}},
		"reject": {false, func(ctx context.Context, c *aegisagent.Client) error { _, err := c.Reject(ctx, "i", "r"); return err }},
		"edit": {false, func(ctx context.Context, c *aegisagent.Client) error {
			_, err := c.Edit(ctx, "i", action, "r")
			return err
		}},
		"freeze": {false, held((*aegisagent.Client).FreezeAgent)}, "quarantine": {false, held((*aegisagent.Client).QuarantineMCPServer)},
		"unfreeze": {false, contained((*aegisagent.Client).UnfreezeAgent)}, "revoke": {false, contained((*aegisagent.Client).RevokeAgent)},
		"restore":                 {false, contained((*aegisagent.Client).RestoreMCPServer)},
		"authorize without a key": {false, authorizing(aegisagent.AuthorizeOptions{})},
		"authorize with a key":    {true, authorizing(aegisagent.AuthorizeOptions{RequestID: "one"})},
		"consume":                 {true, func(ctx context.Context, c *aegisagent.Client) error { _, err := c.Consume(ctx, "i", hash); return err }},
		"outcome": {true, func(ctx context.Context, c *aegisagent.Client) error {
			_, err := c.Outcome(ctx, "i", aegisagent.OutcomeOK, hash, nil)
			return err
		}},
		"read": {true, func(ctx context.Context, c *aegisagent.Client) error { _, err := c.Approval(ctx, "i"); return err }},
	} {
		edge := newFakeEdge(t)
		client := clientTo(t, edge.URL)
		aegisagent.RecordPauses(client, 0)
		for _, given := range answers {
			edge.forget()
			for _, where := range []string{"authorize", "approval", "consume", "outcome", "other"} {
				edge.always(where, given.said)
			}
			if one.call(context.Background(), client) == nil {
				t.Fatal(name, given.name, "is no error")
			}
			times := given.unsafe
			if one.isSafe {
				times = given.safe
			}
			if asked := edge.seen(); len(asked) != times {
				t.Errorf("%s, %s: sent %d times, expected %d", name, given.name, len(asked), times)
			} else {
				for _, again := range asked {
					equal(t, string(again.body), string(asked[0].body))
				}
			}
		}
		// Where nobody listens, nothing was sent: any call is made again.
		nobody := clientTo(t, freeURL(t))
		pauses := aegisagent.RecordPauses(nobody, 0)
		err := one.call(context.Background(), nobody)
		if !errorsIs(err, aegisagent.Unreachable) || len(pauses()) != 2 {
			t.Error(fmt.Sprint(name, ", nobody listens: ", err, pauses()))
		}
	}
}
