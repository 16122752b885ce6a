package aegisagent_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strings"
	"testing"

	aegisagent "github.com/aegisagent/aegisagent-go"
	"github.com/aegisagent/aegisagent-go/internal/proof"
)

// Against the real program: from an action that asks for approval to the one that runs.

func TestRealAnApprovedActionRunsOnce(t *testing.T) {
	proof.Of(t, "e2e-approval")
	w, ran, asked := here(t), &recorder{}, ""
	_, err := protect(t, w.agentsOwn, w.refund(func(id string) { asked = id; w.approve(id) }), ran.run)(trusted(t), note{"a", 1})
	must(t, err)
	equal(t, len(ran.ran()), 1)
	w.others.Wait()
	approval, err := w.approver.Approval(context.Background(), asked)
	must(t, err)
	equal(t, approval.Status, "CONSUMED")
	w.hasOutcomes("ok")
	equal(t, w.hasKind("tamper_attempt"), false)
}

func TestRealAnApprovalsActionComesBackWithTheHashThatWasSent(t *testing.T) {
	proof.Of(t, "e2e-approval", "action-hash")
	w := here(t)
	odd := map[string]any{
		"é😀": []any{1.0, 1e20, 1e-7, 0.1, 5e-324, 1.7976931348623157e308, 1<<53 - 1, -(1<<53 - 1), true, nil, -1.5},
		"a":  "\u2028\x00\x7f\"\\/\u200f<&>", "": map[string]any{"": []any{map[string]any{}}},
	}
	var got map[string]any
	_, err := protect(t, w.agentsOwn, w.refund(w.approve), func(_ context.Context, p map[string]any) (int, error) { got = p; return 0, nil })(trusted(t), odd)
	must(t, err)
	equal(t, got, odd)
	for _, parameters := range []map[string]any{nil, {}, odd} {
		call := aegisagent.ToolCall{Tool: "crm", Action: "read_customer", Parameters: parameters}
		decision, err := w.agentsOwn.Authorize(trusted(t), call, aegisagent.AuthorizeOptions{})
		must(t, err)
		hash, err := call.ActionHash()
		must(t, err)
		equal(t, decision.ActionHash, hash)
	}
}

func TestRealAStructIsAuthorizedAndRunsAsItIs(t *testing.T) {
	proof.Of(t, "e2e-approval", "protect-freeze")
	w := here(t)
	seven := int64(7)
	given := nested{nil, map[string]*int64{"n": &seven, "none": nil}, []any{1, 1.0, "é"}}
	var got nested
	_, err := protect(t, w.agentsOwn, w.refund(w.approve), func(_ context.Context, p nested) (int, error) { got = p; return 0, nil })(trusted(t), given)
	must(t, err)
	equal(t, got, given)
}

func TestRealARejectedActionDoesNotRun(t *testing.T) {
	proof.Of(t, "e2e-rejection")
	w, ran := here(t), &recorder{}
	_, err := protect(t, w.agentsOwn, w.refund(func(id string) {
		if _, err := w.approver.Reject(context.Background(), id, "no"); err != nil {
			t.Error(err)
		}
	}), ran.run)(trusted(t), note{"a", 1})
	deniedAs(t, err, aegisagent.DeniedByApprover, "approval_rejected")
	equal(t, len(ran.ran()), 0)
}

func TestRealAnApprovalPastItsTimeDoesNotRun(t *testing.T) {
	proof.Of(t, "e2e-expiry")
	w, ran := here(t), &recorder{}
	w.settings("approval_ttl_s", 1)
	settings := w.refund(nil)
	// The first look is at one that has ended: who takes that for pending says approval_timeout.
	settings.OnPending = func(_ context.Context, pending aegisagent.ApprovalRef) {
		within(t, longEnough, "the approval has ended", func() bool { return w.statusOf(pending.ApprovalID) == "EXPIRED" })
	}
	_, err := protect(t, w.agentsOwn, settings, ran.run)(trusted(t), note{"a", 1})
	deniedAs(t, err, aegisagent.DeniedByApprover, "approval_expired")
	equal(t, len(ran.ran()), 0)
}

func TestRealArgumentsThatAreSwappedAfterTheApprovalDoNotRun(t *testing.T) {
	proof.Of(t, "e2e-swap")
	w := here(t)
	given, got := []any{"pay 1"}, any(nil)
	_, err := protect(t, w.agentsOwn, w.refund(func(id string) { given[0] = "pay 1000"; w.approve(id) }), func(_ context.Context, p map[string]any) (int, error) {
		got = p["note"]
		return 0, nil
	})(trusted(t), map[string]any{"note": given})
	must(t, err)
	w.others.Wait()
	equal(t, got, any([]any{"pay 1"}))
	equal(t, given, []any{"pay 1000"})
	w.hasOutcomes("ok")
	equal(t, w.hasKind("tamper_attempt"), false)
}

// onConsume does something with each consume that passes.
func (w *world) onConsume(do func(r *http.Request, approvalID string)) *aegisagent.Client {
	return w.between(func(r *http.Request) {
		if parts := strings.Split(r.URL.Path, "/"); parts[len(parts)-1] == "consume" {
			do(r, parts[3])
		}
	})
}

func TestRealAnActionThatIsSwappedBetweenApprovalAndExecutionDoesNotRun(t *testing.T) {
	proof.Of(t, "e2e-swap")
	w, ran := here(t), &recorder{}
	resource := "customer-1"
	hash, err := aegisagent.ActionHash("crm", "refund", &resource, true, map[string]any{"note": "swapped", "amount": 1000})
	must(t, err)
	swapping := w.onConsume(func(r *http.Request, _ string) {
		body := []byte(`{"claimed_action_hash":"` + hash + `"}`)
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	})
	_, err = protect(t, swapping, w.refund(w.approve), ran.run)(trusted(t), note{"a", 1})
	denied := deniedAs(t, err, aegisagent.DeniedUnverified, "action_hash_mismatch")
	equal(t, len(ran.ran()), 0)
	within(t, longEnough, "the attempt is an event", func() bool { return w.hasKind("tamper_attempt") })
	approval, err := w.approver.Approval(context.Background(), denied.ApprovalID)
	must(t, err)
	equal(t, approval.Status, "APPROVED")
}

func (w *world) edit(id string) string {
	resource := "customer-1"
	edited := aegisagent.ToolCall{
		Tool: "crm", Action: "refund", Resource: &resource, MutatesState: true, Parameters: map[string]any{"note": "edited", "amount": 2},
	}
	if _, err := w.approver.Edit(context.Background(), id, edited, "less"); err != nil {
		w.t.Error(err)
	}
	hash, _ := edited.ActionHash()
	return hash
}

func TestRealAnEditedActionRunsAsEditedOnlyIfTheCallerOptedIn(t *testing.T) {
	proof.Of(t, "e2e-edit")
	w, ran := here(t), &recorder{}
	sam := w.client(w.key("approver", "sam", "security"))
	editAndApprove := func(id string) {
		if _, err := sam.Approve(context.Background(), id, w.edit(id), ""); err != nil {
			t.Error(err)
		}
	}
	_, err := protect(t, w.agentsOwn, w.refund(editAndApprove), ran.run)(trusted(t), note{"a", 1})
	deniedAs(t, err, aegisagent.DeniedByApprover, "approval_edited")
	equal(t, len(ran.ran()), 0)
	settings := w.refund(editAndApprove)
	settings.AcceptEdits = true
	_, err = protect(t, w.agentsOwn, settings, ran.run)(trusted(t), note{"a", 1})
	must(t, err)
	equal(t, ran.ran(), []note{{"edited", 2}})
	w.hasOutcomes("ok")
	equal(t, w.hasKind("tamper_attempt"), false)
}

func TestRealAnEditBetweenTheApprovalAndItsConsumptionDoesNotRun(t *testing.T) {
	proof.Of(t, "e2e-edit")
	w, ran := here(t), &recorder{}
	settings := w.refund(w.approve)
	settings.AcceptEdits = true
	_, err := protect(t, w.onConsume(func(_ *http.Request, id string) { w.edit(id) }), settings, ran.run)(trusted(t), note{"a", 1})
	deniedAs(t, err, aegisagent.DeniedUnverified, "action_hash_mismatch")
	equal(t, len(ran.ran()), 0)
}

func TestRealAnApprovalIsUsedOnceAndASecondCallAsksAnew(t *testing.T) {
	proof.Of(t, "e2e-replay")
	w, ran, asked := here(t), &recorder{}, []string{}
	for range 2 {
		_, err := protect(t, w.agentsOwn, w.refund(func(id string) { asked = append(asked, id); w.approve(id) }), ran.run)(trusted(t), note{"a", 1})
		must(t, err)
		w.others.Wait()
	}
	if asked[0] == asked[1] || len(ran.ran()) != 2 {
		t.Fatal(asked)
	}
	approval, err := w.approver.Approval(context.Background(), asked[0])
	must(t, err)
	_, err = w.agentsOwn.Consume(context.Background(), asked[0], approval.ActionHash)
	refused(t, err, 409, "approval_consumed")
}

func TestRealAnApprovalThatSomebodyElseConsumedDoesNotRun(t *testing.T) {
	proof.Of(t, "e2e-replay")
	w, ran := here(t), &recorder{}
	stealing := w.onConsume(func(_ *http.Request, id string) {
		approval, err := w.agentsOwn.Approval(context.Background(), id)
		if err == nil {
			_, err = w.agentsOwn.Consume(context.Background(), id, approval.ActionHash)
		}
		if err != nil {
			t.Error(err)
		}
	})
	_, err := protect(t, stealing, w.refund(w.approve), ran.run)(trusted(t), note{"a", 1})
	deniedAs(t, err, aegisagent.DeniedByApprover, "approval_consumed")
	equal(t, len(ran.ran()), 0)
}

func TestRealNobodyApprovesWhatIsDoneOnTheirBehalf(t *testing.T) {
	proof.Of(t, "trust-context")
	w, ran := here(t), &recorder{}
	sam := w.client(w.key("approver", "sam", "security"))
	ctx, err := aegisagent.OnBehalfOf(trusted(t), aegisagent.User{ID: "rita"})
	must(t, err)
	_, err = protect(t, w.agentsOwn, w.refund(func(id string) {
		if _, err := w.approver.Approve(context.Background(), id, "", ""); err == nil || !strings.Contains(err.Error(), "self_approval") {
			t.Error(err)
		}
		if _, err := sam.Approve(context.Background(), id, "", ""); err != nil {
			t.Error(err)
		}
	}), ran.run)(ctx, note{"a", 1})
	must(t, err)
	equal(t, len(ran.ran()), 1)
}
