package aegisagent_test

import (
	"context"
	"errors"
	"maps"
	"testing"

	aegisagent "github.com/aegisagent/aegisagent-go"
	"github.com/aegisagent/aegisagent-go/internal/proof"
)

// The fields themselves are held against docs/openapi.yaml by the module conformance.

func TestAFieldOfAnotherTypeIsABadReplyAndAnUnknownOneIsIgnored(t *testing.T) {
	proof.Of(t, "models-openapi")
	good := map[string]any{"status": "consumed", "approval_id": "i", "action_hash": aHash, "new": 1}
	read, err := aegisagent.ReadConsumed(good)
	must(t, err)
	equal(t, read, aegisagent.Consumed{Status: "consumed", ApprovalID: "i", ActionHash: aHash})
	for _, name := range []string{"status", "approval_id", "action_hash"} {
		for _, bad := range []any{nil, 1, true, 1.0, []any{}, map[string]any{}} {
			changed := maps.Clone(good)
			changed[name] = bad
			_, err := aegisagent.ReadConsumed(changed)
			equal(t, errors.Is(err, aegisagent.BadReply), true)
		}
		changed := maps.Clone(good)
		delete(changed, name)
		_, err := aegisagent.ReadConsumed(changed)
		equal(t, errors.Is(err, aegisagent.BadReply), true)
	}
	for _, bad := range []any{nil, []any{}, "x", 1} {
		_, err := aegisagent.ReadConsumed(bad)
		equal(t, errors.Is(err, aegisagent.BadReply), true)
	}
}

func TestAnIntegerIsNeitherTrueNorADouble(t *testing.T) {
	proof.Of(t, "models-openapi")
	edge := newFakeEdge(t)
	client := clientTo(t, edge.URL)
	for _, bad := range []string{"true", "40.0", "4e1", `"40"`, "null"} {
		edge.always("authorize", answer{status: 200, body: []byte(`{"risk_score":` + bad + `,"decision_id":"d","decision":"allow","reason":"r","matched_policies":[],` +
			`"risk_level":"low","root_trust_level":"unknown","trust_token":"t","action_hash":"` + aHash + `","dry_run":false,"approval":null,` +
			`"receipt":{"receipt_id":"r","receipt_hash":null,"prev_receipt_hash":null,"canon_version":"aegis-jcs-1"}}`)})
		_, err := client.Authorize(context.Background(), aegisagent.ToolCall{Tool: "t", Action: "a"}, aegisagent.AuthorizeOptions{})
		equal(t, errors.Is(err, aegisagent.BadReply), true)
	}
}

func TestListsAreReadItemByItem(t *testing.T) {
	proof.Of(t, "models-openapi")
	edge := newFakeEdge(t)
	client, ctx := clientTo(t, edge.URL), context.Background()
	for _, bad := range []any{map[string]any{}, []any{1}, []any{nil}, "x"} {
		edge.always("other", answer{status: 200, body: bad})
		_, err := client.Receipts(ctx, "", "", aegisagent.Page{})
		equal(t, errors.Is(err, aegisagent.BadReply), true)
		_, err = client.Containment(ctx, aegisagent.Page{})
		equal(t, errors.Is(err, aegisagent.BadReply), true)
		_, err = client.Approvals(ctx, "", aegisagent.Page{})
		equal(t, errors.Is(err, aegisagent.BadReply), true)
	}
	edge.always("other", answer{status: 200, body: []any{}})
	found, err := client.Approvals(ctx, "PENDING", aegisagent.Page{Limit: 2, Offset: 3})
	must(t, err)
	equal(t, len(found), 0)
}
