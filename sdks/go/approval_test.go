package aegisagent_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	aegisagent "github.com/aegisagent/aegisagent-go"
	"github.com/aegisagent/aegisagent-go/internal/proof"
)

// An approval is waited for and consumed, and runs as it was edited only for who opted in.

func TestAnApprovedActionIsConsumedAndRuns(t *testing.T) {
	proof.Of(t, "protect-approval")
	edge, ran, settings := newFakeEdge(t), &recorder{}, usual
	edge.decision, edge.statuses = "require_approval", []string{"404", "404", "PENDING", "APPROVED"}
	var told aegisagent.ApprovalRef
	settings.OnPending = func(_ context.Context, pending aegisagent.ApprovalRef) { told = pending }
	_, err := protect(t, clientTo(t, edge.URL), settings, ran.run)(context.Background(), note{"a", 1})
	must(t, err)
	equal(t, edge.names(), []string{"authorize", "approval", "approval", "approval", "approval", "consume", "outcome"})
	equal(t, told.ApproverGroup, "release")
	equal(t, told.ActionHash, hashOf(t, map[string]any{"note": "a", "amount": 1}))
	equal(t, len(ran.ran()), 1)
}

func TestWhoeverIsToldOfAnApprovalAndFailsDecidesNothing(t *testing.T) {
	proof.Of(t, "protect-approval")
	for status, runs := range map[string]int{"APPROVED": 1, "REJECTED": 0} {
		edge, ran, settings, log, told := newFakeEdge(t), &recorder{}, usual, logged(t), 0
		edge.decision, edge.statuses = "require_approval", []string{"PENDING", status}
		settings.OnPending = func(context.Context, aegisagent.ApprovalRef) {
			told++
			panic("what nobody may read")
		}
		_, err := protect(t, clientTo(t, edge.URL), settings, ran.run)(context.Background(), note{"a", 1})
		if runs == 0 {
			deniedAs(t, err, aegisagent.DeniedByApprover, "approval_rejected")
		} else {
			must(t, err)
		}
		equal(t, []int{told, len(ran.ran()), strings.Count(log.String(), "OnPending panicked")}, []int{1, runs, 1})
		if strings.Contains(log.String(), "nobody may read") {
			t.Fatal(log)
		}
	}
}

func TestAResourceThatPanicsIsADenialAndNothingIsSent(t *testing.T) {
	proof.Of(t, "protect-unfreezable")
	edge, ran, settings := newFakeEdge(t), &recorder{}, usual
	settings.Resource, settings.ResourceOf = "", func(map[string]any) string { panic("what nobody may read") }
	_, err := protect(t, clientTo(t, edge.URL), settings, ran.run)(context.Background(), note{"a", 1})
	denied := deniedAs(t, err, aegisagent.DeniedUnfreezable, "unsupported_type")
	if strings.Contains(denied.Error(), "nobody may read") || len(ran.ran())+len(edge.seen()) > 0 {
		t.Fatal(denied)
	}
}

func TestAnApprovalThatEndedOtherwiseIsADenial(t *testing.T) {
	proof.Of(t, "protect-approval")
	for _, status := range []string{"REJECTED", "EXPIRED", "CONSUMED"} {
		edge, ran := newFakeEdge(t), &recorder{}
		edge.decision, edge.statuses = "require_approval", []string{"PENDING", status}
		_, err := protect(t, clientTo(t, edge.URL), usual, ran.run)(context.Background(), note{"a", 1})
		denied := deniedAs(t, err, aegisagent.DeniedByApprover, "approval_"+strings.ToLower(status))
		if denied.DecisionID == "" || denied.ApprovalID == "" || len(ran.ran())+len(edge.sent("consume")) > 0 {
			t.Fatal(denied, ran.ran())
		}
	}
}

func TestNobodyWhoDecidesInTimeIsADenial(t *testing.T) {
	proof.Of(t, "protect-approval")
	edge, ran, settings := newFakeEdge(t), &recorder{}, usual
	edge.decision, edge.statuses = "require_approval", []string{"PENDING"}
	for _, settings.ApprovalTimeout = range []time.Duration{aegisagent.LookOnce, 300 * time.Millisecond} {
		_, err := protect(t, clientTo(t, edge.URL), settings, ran.run)(context.Background(), note{"a", 1})
		deniedAs(t, err, aegisagent.DeniedByApprover, "approval_timeout")
		if settings.ApprovalTimeout == aegisagent.LookOnce {
			equal(t, edge.names(), []string{"authorize", "approval"})
		}
	}
	equal(t, len(ran.ran()), 0)
}

func TestAnEndThatIsNoTimeIsADenial(t *testing.T) {
	proof.Of(t, "protect-approval")
	for _, bad := range []string{"", "soon", "2026-13-01T00:00:00Z", "2026-01-01T00:00:00", "2026-01-01"} {
		edge, ran := newFakeEdge(t), &recorder{}
		edge.decision = "require_approval"
		edge.replace["authorize"] = func(honest answer) answer {
			honest.body.(map[string]any)["approval"].(map[string]any)["expires_at"] = bad
			return honest
		}
		_, err := protect(t, clientTo(t, edge.URL), usual, ran.run)(context.Background(), note{})
		deniedAs(t, err, aegisagent.DeniedUnverified, "bad_reply")
	}
}

func editOf(changes map[string]any) map[string]any {
	call := map[string]any{
		"tool": "crm", "action": "update_note", "resource": "customer-1", "mutates_state": true,
		"parameters": map[string]any{"note": "b", "amount": 2},
	}
	for name, value := range changes {
		call[name] = value
	}
	return call
}

func TestAnEditedActionRunsAsItWasEditedIfTheCallerOptedIn(t *testing.T) {
	proof.Of(t, "protect-edit")
	edge, ran, settings := newFakeEdge(t), &recorder{}, usual
	edge.decision, edge.edited = "require_approval", editOf(nil)
	_, err := protect(t, clientTo(t, edge.URL), settings, ran.run)(context.Background(), note{"a", 1})
	deniedAs(t, err, aegisagent.DeniedByApprover, "approval_edited")
	equal(t, len(ran.ran())+len(edge.sent("consume")), 0)
	settings.AcceptEdits = true
	_, err = protect(t, clientTo(t, edge.URL), settings, ran.run)(context.Background(), note{"a", 1})
	must(t, err)
	equal(t, ran.ran(), []note{{"b", 2}})
	hash := hashOf(t, map[string]any{"note": "b", "amount": 2})
	equal(t, edge.sent("consume")[0]["claimed_action_hash"], any(hash))
	equal(t, edge.sent("outcome")[0]["executed_hash"], any(hash))
}

func TestAnEditThatThisFunctionCannotRunIsADenialAndConsumesNothing(t *testing.T) {
	proof.Of(t, "protect-edit")
	parameters := func(members map[string]any) map[string]any { return map[string]any{"parameters": members} }
	for name, changes := range map[string]map[string]any{
		"tool": {"tool": "shell"}, "action": {"action": "delete"}, "mutates_state": {"mutates_state": false},
		"resource": {"resource": "customer-2"}, "no resource": {"resource": nil}, "fewer": parameters(map[string]any{"note": "b"}),
		"more": parameters(map[string]any{"note": "b", "amount": 2, "force": true}), "none": parameters(map[string]any{}),
		"another case": parameters(map[string]any{"Note": "b", "amount": 2}), "another type": parameters(map[string]any{"note": 1, "amount": 2}),
		"a double": parameters(map[string]any{"note": "b", "amount": 2.0}), "null": parameters(map[string]any{"note": nil, "amount": 2}),
	} {
		edge, ran, settings := newFakeEdge(t), &recorder{}, usual
		settings.AcceptEdits = true
		edge.decision, edge.edited = "require_approval", editOf(changes)
		_, err := protect(t, clientTo(t, edge.URL), settings, ran.run)(context.Background(), note{"a", 1})
		deniedAs(t, err, aegisagent.DeniedByApprover, "approval_edited")
		if len(ran.ran())+len(edge.sent("consume")) > 0 {
			t.Fatal(name)
		}
	}
}

func TestAResourceThatFollowsFromTheParametersFollowsTheEdit(t *testing.T) {
	proof.Of(t, "protect-edit")
	edge, ran, settings := newFakeEdge(t), &recorder{}, usual
	settings.Resource, settings.AcceptEdits = "", true
	settings.ResourceOf = func(parameters map[string]any) string {
		named := fmt.Sprintf("customer-%d", parameters["amount"])
		parameters["amount"] = 1000 // a copy: this changes nothing
		return named
	}
	edge.decision, edge.edited = "require_approval", editOf(map[string]any{"resource": "customer-2"})
	protected := protect(t, clientTo(t, edge.URL), settings, ran.run)
	_, err := protected(context.Background(), note{"a", 1})
	must(t, err)
	equal(t, ran.ran(), []note{{"b", 2}})
	edge.edited = editOf(map[string]any{"resource": "customer-3"})
	_, err = protected(context.Background(), note{"a", 1})
	deniedAs(t, err, aegisagent.DeniedByApprover, "approval_edited")
	edge.edited = nil
	_, err = protected(context.Background(), note{"a", 1})
	must(t, err)
	equal(t, ran.ran()[1:], []note{{"a", 1}})
}

func TestAResourceThatCannotBeToldIsADenial(t *testing.T) {
	proof.Of(t, "protect-edit", "protect-unfreezable")
	edge, ran, settings := newFakeEdge(t), []any{}, usual
	settings.Resource, settings.AcceptEdits = "", true
	settings.ResourceOf = func(parameters map[string]any) string { return parameters["note"].(string) }
	protected := protect(t, clientTo(t, edge.URL), settings, func(_ context.Context, p map[string]any) (int, error) {
		ran = append(ran, p)
		return 0, nil
	})
	for _, parameters := range []map[string]any{{"note": 1}, {}} {
		_, err := protected(context.Background(), parameters)
		deniedAs(t, err, aegisagent.DeniedUnfreezable, "unsupported_type")
	}
	equal(t, len(edge.sent("authorize")), 0)
	edge.decision = "require_approval"
	edge.edited = editOf(map[string]any{"resource": "b", "parameters": map[string]any{"note": 7}})
	_, err := protected(context.Background(), map[string]any{"note": "a"})
	deniedAs(t, err, aegisagent.DeniedByApprover, "approval_edited")
	equal(t, len(ran)+len(edge.sent("consume")), 0)
}

func TestAnEditMustFitAllTheWayDown(t *testing.T) {
	proof.Of(t, "protect-edit")
	type inner struct {
		Name string `json:"name"`
		Size *int   `json:"size"`
	}
	type outer struct {
		List []inner        `json:"list"`
		Pair [2]int8        `json:"pair"`
		Of   map[string]int `json:"of"`
	}
	good := map[string]any{"name": "b", "size": nil}
	for name, parameters := range map[string]map[string]any{
		"as it is": {"list": []any{good}, "pair": []any{1, 2}, "of": map[string]any{"x": 1}},
		"fewer":    {"list": []any{map[string]any{"name": "b"}}, "pair": []any{1, 2}, "of": nil},
		"more":     {"list": []any{map[string]any{"name": "b", "size": 1, "admin": true}}, "pair": []any{1, 2}, "of": nil},
		"case":     {"list": []any{map[string]any{"name": "b", "SIZE": 1}}, "pair": []any{1, 2}, "of": nil},
		"longer":   {"list": []any{good}, "pair": []any{1, 2, 3}, "of": nil}, "shorter": {"list": []any{good}, "pair": []any{1}, "of": nil},
		"too large": {"list": []any{good}, "pair": []any{1, 128}, "of": nil}, "a text": {"list": "x", "pair": []any{1, 2}, "of": nil},
		"a list": {"list": []any{good}, "pair": []any{1, 2}, "of": []any{}}, "null": {"list": []any{nil}, "pair": []any{1, 2}, "of": nil},
		"texts": {"list": []any{good}, "pair": []any{1, 2}, "of": map[string]any{"x": "1"}},
	} {
		edge, ran, settings := newFakeEdge(t), []outer{}, usual
		settings.AcceptEdits = true
		edge.decision, edge.edited = "require_approval", editOf(map[string]any{"parameters": parameters})
		_, err := protect(t, clientTo(t, edge.URL), settings, func(_ context.Context, p outer) (int, error) {
			ran = append(ran, p)
			return 0, nil
		})(context.Background(), outer{})
		if name == "as it is" {
			must(t, err)
			equal(t, ran, []outer{{[]inner{{"b", nil}}, [2]int8{1, 2}, map[string]int{"x": 1}}})
			continue
		}
		deniedAs(t, fmt.Errorf("%s: %w", name, err), aegisagent.DeniedByApprover, "approval_edited")
		equal(t, len(ran)+len(edge.sent("consume")), 0)
	}
}
