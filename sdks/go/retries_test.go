package aegisagent_test

import (
	"context"
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
