package aegisagent_test

import (
	"context"
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"
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

// An answer for each model, in which everything that may be null is something.
func goodAnswers(t *testing.T) map[string]map[string]any {
	t.Helper()
	call := map[string]any{"tool": "t", "action": "a", "resource": "r", "mutates_state": true, "parameters": map[string]any{"n": 1}}
	hash, time := hashOfCall(call), later(0)
	approval := map[string]any{
		"approval_id": "i", "status": "PENDING", "approver_group": "g", "expires_at": time, "expires_in": 900, "action_hash": aHash,
	}
	receipt := map[string]any{"receipt_id": "r", "receipt_hash": aHash, "prev_receipt_hash": aHash, "canon_version": "aegis-jcs-1"}
	hold := map[string]any{"hold_id": "h", "kind": "freeze", "reason": "r", "by": "b", "since": time, "until": time}
	edges := map[string]any{"live": 2, "enforcing": 2, "silent": []any{"e"}, "since": time}
	return map[string]map[string]any{
		"ToolCall": call, "ReceiptRef": receipt, "ApprovalRef": approval, "Hold": hold, "ContainedEdges": edges,
		"Decision": {
			"decision_id": "d", "decision": "allow", "reason": "r", "matched_policies": []any{"p"}, "risk_score": 40, "risk_level": "low",
			"root_trust_level": "unknown", "trust_token": "t", "action_hash": aHash, "dry_run": false, "approval": approval, "receipt": receipt,
		},
		"Approval": {
			"approval_id": "i", "status": "PENDING", "agent_id": "a", "decision_id": "d", "action_hash": hash, "original_action_hash": hash,
			"is_edited": true, "tool_call": call, "edited_tool_call": call, "approver_group": "g", "approvals_needed": 1, "approved_by": []any{"x"},
			"source_trust": "unknown", "reason": "r", "requested_at": time, "expires_at": time, "expires_in": 900, "edited_by": "x",
			"policy_digest": aHash, "risk_level": "high", "matched_policies": []any{"p"}, "user_id": "u",
		},
		"Consumed":     {"status": "consumed", "approval_id": "i", "action_hash": aHash},
		"Outcome":      {"decision_id": "d", "outcome_id": "o", "status": "ok", "violation": "executed_despite_deny", "receipt_hash": aHash},
		"Registration": {"id": "i", "agent_key": "k", "agent_token": strings.Repeat("t", 40), "expires_at": time},
		"Containment": {
			"tenant_id": "t", "target_type": "agent", "target_id": "i", "holds": []any{hold}, "revoked": false, "revision": 1, "issued_at": time,
			"verdict": "frozen", "enforced": true, "edges": edges,
		},
		"ReceiptVerdict": {
			"receipt_id": "r", "receipt_hash": aHash, "lane": "l", "seq": 1, "verdict": "valid", "checks": map[string]any{"link": "ok"}, "failure": "f",
			"same_id": []any{map[string]any{"kind": "k"}},
		},
	}
}

var mayMiss = []string{
	"ToolCall.resource", "ApprovalRef.expires_in", "Approval.expires_in", "Containment.enforced", "Containment.edges", "ContainedEdges.since",
	"ReceiptVerdict.same_id",
}

func TestEveryFieldOfEveryModelIsOfItsTypeOrTheReplyIsBad(t *testing.T) {
	proof.Of(t, "models-openapi")
	good := goodAnswers(t)
	equal(t, len(good), len(aegisagent.Readers))
	for model, read := range aegisagent.Readers {
		isBad := func(what string, value any) {
			t.Helper()
			if _, err := read(value); !errors.Is(err, aegisagent.BadReply) {
				t.Errorf("%s, %s: %v", model, what, err)
			}
		}
		made, err := read(good[model])
		must(t, err)
		kind := reflect.TypeOf(made)
		equal(t, kind.NumField(), len(good[model]))
		for place := range kind.NumField() {
			field := kind.Field(place)
			name := field.Tag.Get("json")
			if reflect.ValueOf(made).Field(place).IsZero() && good[model][name] != false {
				t.Errorf("%s.%s is not read", model, name)
			}
			with := func(value any) map[string]any {
				changed := maps.Clone(good[model])
				changed[name] = value
				return changed
			}
			for _, wrong := range []any{7, 1.5, true, "a text", []any{7}, map[string]any{}} {
				isLike := reflect.TypeOf(wrong).Kind() == reflect.TypeOf(good[model][name]).Kind()
				if !isLike {
					isBad(name, with(wrong))
				}
			}
			isNullable := field.Type.Kind() == reflect.Pointer && field.Type != reflect.TypeFor[*aegisagent.Secret]()
			if isNullable && name != "edited_tool_call" {
				_, err := read(with(nil))
				must(t, err)
			} else {
				isBad(name+" is null", with(nil))
			}
			without := maps.Clone(good[model])
			delete(without, name)
			if slices.Contains(mayMiss, model+"."+name) {
				_, err := read(without)
				must(t, err)
			} else {
				isBad(name+" is missing", without)
			}
		}
		more := maps.Clone(good[model])
		more["new"] = 1
		again, err := read(more)
		must(t, err)
		if model != "Registration" {
			equal(t, again, made)
		}
		for _, bad := range []any{nil, []any{}, "x", 1, true} {
			isBad("no object", bad)
		}
	}
}
