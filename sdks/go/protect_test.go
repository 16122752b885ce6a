package aegisagent_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	aegisagent "github.com/aegisagent/aegisagent-go"
	"github.com/aegisagent/aegisagent-go/internal/proof"
)

// Protect, with an honest server: what is hashed is what runs, once, and what came of it is reported.

func hashOf(t *testing.T, parameters map[string]any) string {
	t.Helper()
	resource := "customer-1"
	hash, err := aegisagent.ActionHash("crm", "update_note", &resource, true, parameters)
	must(t, err)
	return hash
}

func TestAnAllowedActionRunsAndIsReported(t *testing.T) {
	proof.Of(t, "protect-allow")
	edge, ran := newFakeEdge(t), &recorder{}
	result, err := protect(t, clientTo(t, edge.URL), usual, ran.run)(context.Background(), note{"hello", 1})
	must(t, err)
	equal(t, result, "done")
	equal(t, ran.ran(), []note{{"hello", 1}})
	equal(t, edge.sent("authorize")[0]["tool_call"].(map[string]any)["parameters"], any(map[string]any{"note": "hello", "amount": 1}))
	hash := hashOf(t, map[string]any{"note": "hello", "amount": 1})
	reports := edge.sent("outcome")
	equal(t, len(reports), 1)
	delete(reports[0], "request_id")
	equal(t, reports, []map[string]any{{"status": "ok", "executed_hash": hash}})
}

func TestTheSentBodyHoldsTheFrozenTextByteForByte(t *testing.T) {
	proof.Of(t, "protect-freeze")
	edge := newFakeEdge(t)
	odd := map[string]any{"é😀": []any{1.0, 1e20, -0.5, 5}, "<&>": "\u2028\x00\u007f"}
	_, err := protect(t, clientTo(t, edge.URL), usual, func(context.Context, map[string]any) (int, error) { return 0, nil })(context.Background(), odd)
	must(t, err)
	resource := "customer-1"
	frozen, err := aegisagent.Freeze("crm", "update_note", &resource, true, odd)
	must(t, err)
	if !bytes.Contains(edge.seen()[0].body, []byte(`"tool_call":`+frozen.Text()+"}")) {
		t.Fatalf("%s", edge.seen()[0].body)
	}
}

type nested struct {
	Text  []string          `json:"text"`
	Named map[string]*int64 `json:"named"`
	Any   any               `json:"any"`
}

func TestWhatRunsIsWhatWasAskedForWhateverBecomesOfTheArguments(t *testing.T) {
	proof.Of(t, "protect-freeze")
	edge := newFakeEdge(t)
	edge.decision, edge.statuses = "require_approval", []string{"404", "PENDING", "APPROVED"}
	number := int64(7)
	given := nested{[]string{"a"}, map[string]*int64{"n": &number}, []any{map[string]any{"k": "v"}}}
	var got nested
	protected := protect(t, clientTo(t, edge.URL), usual, func(_ context.Context, p nested) (int, error) {
		got = p
		return 0, nil
	})
	edge.before["authorize"] = func() { given.Text[0] = "b"; number = 8 }
	edge.before["consume"] = func() {
		given.Named["n"] = nil
		given.Any.([]any)[0].(map[string]any)["k"] = "w"
	}
	_, err := protected(context.Background(), given)
	must(t, err)
	seven := int64(7)
	equal(t, got, nested{[]string{"a"}, map[string]*int64{"n": &seven}, []any{map[string]any{"k": "v"}}})
	if got.Named["n"] == &number {
		t.Fatal("the function got the caller's own number")
	}
	hash := hashOf(t, map[string]any{"text": []any{"a"}, "named": map[string]any{"n": 7}, "any": []any{map[string]any{"k": "v"}}})
	equal(t, len(edge.sent("consume")), 1)
	equal(t, edge.sent("consume")[0]["claimed_action_hash"], any(hash))
}

func TestAStructAndAMapOfTheSameNamesAreOneAction(t *testing.T) {
	proof.Of(t, "protect-binding")
	type reversed struct {
		Amount uint16 `json:"amount"`
		Note   string `json:"note"`
	}
	type words string
	edge := newFakeEdge(t)
	client, ctx := clientTo(t, edge.URL), context.Background()
	_, err := protect(t, client, usual, func(context.Context, note) (int, error) { return 0, nil })(ctx, note{"a", 1})
	must(t, err)
	_, err = protect(t, client, usual, func(context.Context, reversed) (int, error) { return 0, nil })(ctx, reversed{1, "a"})
	must(t, err)
	_, err = protect(t, client, usual, func(context.Context, map[string]any) (int, error) { return 0, nil })(ctx, map[string]any{"note": "a", "amount": 1})
	must(t, err)
	_, err = protect(t, client, usual, func(context.Context, map[words]any) (int, error) { return 0, nil })(ctx, map[words]any{"note": "a", "amount": 1})
	must(t, err)
	// A field that nobody set is its zero value, by name.
	_, err = protect(t, client, usual, func(context.Context, note) (int, error) { return 0, nil })(ctx, note{Note: "a"})
	must(t, err)
	sent := edge.sent("authorize")
	for _, one := range sent[:4] {
		equal(t, one["tool_call"], sent[0]["tool_call"])
	}
	equal(t, sent[4]["tool_call"].(map[string]any)["parameters"], any(map[string]any{"note": "a", "amount": 0}))
}

func TestNumbersAndTextsArriveAsTheyWereGiven(t *testing.T) {
	proof.Of(t, "protect-freeze")
	values := []any{0, -1, 1.0, 0.1, 1e20, 1e-7, 1<<53 - 1, true, nil, "é", "😀", "\u2028", "a\x00b", "", map[string]any{"": []any{map[string]any{}}}}
	edge := newFakeEdge(t)
	got, err := protect(t, clientTo(t, edge.URL), usual, func(_ context.Context, p map[string]any) (any, error) { return p["values"], nil })(
		context.Background(), map[string]any{"values": values})
	must(t, err)
	equal(t, got, any(values))
	equal(t, fmt.Sprintf("%#v", got), fmt.Sprintf("%#v", values))
}

func TestWhatIsPassedOnIsNeitherSentNorCopied(t *testing.T) {
	proof.Of(t, "protect-allow")
	type key struct{}
	connection, edge := &struct{ used int }{}, newFakeEdge(t)
	ctx := context.WithValue(context.Background(), key{}, connection)
	_, err := protect(t, clientTo(t, edge.URL), usual, func(ctx context.Context, _ struct{}) (int, error) {
		connection.used++
		equal(t, ctx.Value(key{}), any(connection))
		return 0, nil
	})(ctx, struct{}{})
	must(t, err)
	equal(t, connection.used, 1)
	equal(t, edge.sent("authorize")[0]["tool_call"].(map[string]any)["parameters"], any(map[string]any{}))
}

func TestACallThatIsCancelledBeforeItRunsDoesNotRun(t *testing.T) {
	proof.Of(t, "e2e-cancel")
	for where, code := range map[string]string{"authorize": "no_answer", "approval": "no_answer", "consume": "consume_ambiguous"} {
		edge, ran, settings := newFakeEdge(t), &recorder{}, usual
		// A read that fails open does not do so for a caller who gave up.
		settings.ReadOnly, settings.Risk, settings.FailOpenReads = true, aegisagent.RiskLow, true
		edge.decision = "require_approval"
		ctx, cancel := context.WithCancel(context.Background())
		edge.before[where] = func() {
			cancel()
			<-edge.ended
		}
		_, err := protect(t, clientTo(t, edge.URL), settings, ran.run)(ctx, note{"a", 1})
		deniedAs(t, err, aegisagent.DeniedUnavailable, code)
		if !errors.Is(err, context.Canceled) || len(ran.ran())+len(edge.sent("outcome")) > 0 || len(edge.sent("consume")) > 1 {
			t.Fatal(where, err, ran.ran())
		}
	}
}

func TestACallThatIsCancelledInTheMomentOfItsAnswerDoesNotRun(t *testing.T) {
	proof.Of(t, "e2e-cancel")
	edge, ran := newFakeEdge(t), &recorder{}
	edge.decision, edge.statuses = "require_approval", []string{"PENDING"}
	ctx, cancel := context.WithCancel(context.Background())
	edge.before["approval"] = cancel
	_, err := protect(t, clientTo(t, edge.URL), usual, ran.run)(ctx, note{"a", 1})
	deniedAs(t, err, aegisagent.DeniedUnavailable, "no_answer")
	done, cancel := context.WithTimeout(context.Background(), 0)
	defer cancel()
	_, err = protect(t, clientTo(t, edge.URL), usual, ran.run)(done, note{"a", 1})
	deniedAs(t, err, aegisagent.DeniedUnavailable, "unreachable")
	if !errors.Is(err, context.DeadlineExceeded) || len(ran.ran()) > 0 {
		t.Fatal(err)
	}
}

func TestFrozenActionsShowNoParameters(t *testing.T) {
	proof.Of(t, "no-secrets")
	frozen, err := aegisagent.Freeze("t", "a", nil, true, map[string]any{"password": secretArgument})
	must(t, err)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		if shown := fmt.Sprintf(verb, frozen); strings.Contains(shown, secretArgument) {
			t.Fatal(shown)
		}
	}
	_, _ = io.WriteString(io.Discard, frozen.Text())
}
