package aegisagent_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	aegisagent "github.com/aegisagent/aegisagent-go"
	"github.com/aegisagent/aegisagent-go/internal/proof"
	"github.com/aegisagent/aegisagent-go/receipts"
)

// Against the real program, which one test after the other shares, each with a tenant of its own.

var (
	sharedOnce    sync.Once
	sharedProgram *program
)

func TestMain(m *testing.M) {
	m.Run()
	if sharedProgram != nil {
		sharedProgram.close()
	}
}

func here(t *testing.T) *world {
	t.Helper()
	sharedOnce.Do(func() { sharedProgram = startProgram(t) })
	if sharedProgram == nil {
		t.Skip("AEGIS_BIN names no program")
	}
	return newWorld(t, sharedProgram)
}

func update() aegisagent.Settings {
	return aegisagent.Settings{Tool: "crm", Action: "update_customer", Resource: "customer-1"}
}

func reading() aegisagent.Settings {
	return aegisagent.Settings{Tool: "crm", Action: "read_customer", Resource: "customer-1", ReadOnly: true, Risk: aegisagent.RiskLow}
}

func (w *world) refund(act func(id string)) aegisagent.Settings {
	settings := aegisagent.Settings{Tool: "crm", Action: "refund", Resource: "customer-1"}
	if act != nil {
		settings.OnPending = w.whenAsked(act)
	}
	return settings
}

func TestRealAnAllowedActionRunsAndItsOutcomeIsAReceipt(t *testing.T) {
	proof.Of(t, "e2e-allow")
	w, ran := here(t), &recorder{}
	result, err := protect(t, w.agentsOwn, update(), ran.run)(trusted(t), note{"a", 1})
	must(t, err)
	equal(t, result, "done")
	equal(t, ran.ran(), []note{{"a", 1}})
	w.hasOutcomes("ok")
}

func TestRealADeniedActionDoesNotRun(t *testing.T) {
	proof.Of(t, "e2e-deny")
	w, ran := here(t), &recorder{}
	_, err := protect(t, w.agentsOwn, update(), ran.run)(aegisagent.WithSourceTrust(trusted(t), aegisagent.UntrustedExternal), note{"a", 1})
	denied := deniedAs(t, err, aegisagent.DeniedByPolicy, "policy_denied")
	unknown := update()
	unknown.Action = "drop_tables"
	_, err = protect(t, w.agentsOwn, unknown, ran.run)(trusted(t), note{"a", 1})
	deniedAs(t, err, aegisagent.DeniedByPolicy, "unknown_action")
	equal(t, len(ran.ran()), 0)
	within(t, longEnough, "the denial is a receipt", func() bool {
		receipt, err := w.admin.Receipt(context.Background(), denied.DecisionID)
		return err == nil && receipt["decision"] == "deny"
	})
}

func TestRealAFrozenAgentDoesNothingUntilItIsUnfrozen(t *testing.T) {
	proof.Of(t, "e2e-frozen")
	w, ran, ctx := here(t), &recorder{}, context.Background()
	state, err := w.admin.FreezeAgent(ctx, w.agent.ID, "test", 0)
	must(t, err)
	if state.Verdict != "frozen" || state.Enforced == nil || !*state.Enforced || state.Holds[0].Reason != "test" {
		t.Fatal(state)
	}
	open := reading()
	open.FailOpenReads = true
	for _, settings := range []aegisagent.Settings{update(), reading(), open} {
		_, err := protect(t, w.agentsOwn, settings, ran.run)(trusted(t), note{"a", 1})
		deniedAs(t, err, aegisagent.DeniedByPolicy, "agent_frozen")
	}
	held, err := w.admin.Containment(ctx, aegisagent.Page{})
	must(t, err)
	equal(t, held[0].TargetID, w.agent.ID)
	// The one edge is in the program itself; a list has no word on any.
	equal(t, []any{*state.Edges, held[0].Edges}, []any{aegisagent.ContainedEdges{Silent: []string{}}, (*aegisagent.ContainedEdges)(nil)})
	_, err = w.admin.UnfreezeAgent(ctx, w.agent.ID, "test")
	must(t, err)
	_, err = protect(t, w.agentsOwn, reading(), ran.run)(trusted(t), note{"a", 1})
	must(t, err)
	equal(t, len(ran.ran()), 1)
}

func TestRealAnAgentThatIsFrozenWhileItWaitsDoesNotRun(t *testing.T) {
	proof.Of(t, "e2e-frozen")
	w, ran := here(t), &recorder{}
	_, err := protect(t, w.agentsOwn, w.refund(func(id string) {
		if _, err := w.admin.FreezeAgent(context.Background(), w.agent.ID, "test", 0); err != nil {
			t.Error(err)
		}
		w.approve(id)
	}), ran.run)(trusted(t), note{"a", 1})
	deniedAs(t, err, aegisagent.DeniedByPolicy, "agent_frozen")
	equal(t, len(ran.ran()), 0)
}

func TestRealAnEdgeThatIsKilledWhileAnApprovalIsWaitedForIsADenial(t *testing.T) {
	proof.Of(t, "edge-killed")
	doomed := startProgram(t)
	defer doomed.close()
	w, ran := newWorld(t, doomed), &recorder{}
	settings := w.refund(nil)
	settings.OnPending = func(context.Context, aegisagent.ApprovalRef) { doomed.kill() }
	settings.Unreachable = 500 * time.Millisecond
	_, err := protect(t, w.agentsOwn, settings, ran.run)(trusted(t), note{"a", 1})
	deniedAs(t, err, aegisagent.DeniedUnavailable, "unreachable")
	equal(t, len(ran.ran()), 0)
}

func TestRealAnEdgeThatRestartsWhileAnApprovalIsWaitedForCostsNothing(t *testing.T) {
	proof.Of(t, "edge-killed", "fail-open")
	restarted := startProgram(t)
	defer restarted.close()
	w, ran := newWorld(t, restarted), &recorder{}
	_, err := protect(t, w.agentsOwn, w.refund(func(id string) {
		restarted.stop()
		restarted.start()
		w.approve(id)
	}), ran.run)(trusted(t), note{"a", 1})
	must(t, err)
	w.others.Wait()
	equal(t, len(ran.ran()), 1)
	restarted.kill()
	open := reading()
	for _, settings := range []aegisagent.Settings{open, update()} {
		_, err = protect(t, w.agentsOwn, settings, ran.run)(trusted(t), note{"b", 1})
		deniedAs(t, err, aegisagent.DeniedUnavailable, "unreachable")
	}
	open.FailOpenReads = true
	_, err = protect(t, w.agentsOwn, open, ran.run)(trusted(t), note{"c", 1})
	must(t, err)
	equal(t, ran.ran()[1:], []note{{"c", 1}})
}

func TestReal200TasksAtOnceOnOneClient(t *testing.T) {
	proof.Of(t, "e2e-200-tasks")
	w := here(t)
	type task struct {
		ID    string `json:"id"`
		Trust string `json:"trust"`
	}
	var mutex sync.Mutex
	ran := map[task]int{}
	settings := update()
	settings.Resource, settings.ResourceOf = "", func(p map[string]any) string { return p["id"].(string) }
	protected := protect(t, w.agentsOwn, settings, func(ctx context.Context, p task) (string, error) {
		mutex.Lock()
		defer mutex.Unlock()
		// The label under which it runs, by its own context, not the one that it was told.
		ran[task{p.ID, aegisagent.CurrentTrust(ctx).String()}]++
		return p.ID, nil
	})
	var all sync.WaitGroup
	for number := range 200 {
		label := aegisagent.TrustedInternalUnsigned
		if number%2 == 1 {
			label = aegisagent.UntrustedExternal
		}
		ctx, err := aegisagent.WithRun(aegisagent.WithSourceTrust(context.Background(), label), fmt.Sprint("task-", number))
		must(t, err)
		all.Add(1)
		go func() {
			defer all.Done()
			result, err := protected(ctx, task{fmt.Sprint(number), label.String()})
			isRight := err == nil && result == fmt.Sprint(number)
			if number%2 == 1 {
				isRight = errors.Is(err, aegisagent.DeniedByPolicy) && result == ""
			}
			if !isRight {
				t.Error(number, result, err)
			}
		}()
	}
	all.Wait()
	expected := map[task]int{}
	for number := 0; number < 200; number += 2 {
		expected[task{fmt.Sprint(number), "trusted_internal_unsigned"}] = 1
	}
	if !reflect.DeepEqual(ran, expected) {
		t.Fatal(ran)
	}
	within(t, longEnough, "each run has its outcome", func() bool { return len(w.outcomes()) >= 100 })
	found := w.outcomes()
	equal(t, []any{len(found), slices.Compact(found)}, []any{100, []string{"ok"}})
}

func TestRealALabelThatWasSeenInARunStaysWithIt(t *testing.T) {
	proof.Of(t, "trust-context", "trust-token")
	w, ran := here(t), &recorder{}
	tainted, err := aegisagent.WithRun(context.Background(), "tainted")
	must(t, err)
	_, err = protect(t, w.agentsOwn, reading(), ran.run)(aegisagent.WithSourceTrust(tainted, aegisagent.UntrustedExternal), note{"a", 1})
	must(t, err)
	_, err = protect(t, w.agentsOwn, update(), ran.run)(aegisagent.WithSourceTrust(tainted, aegisagent.TrustedInternalUnsigned), note{"b", 1})
	deniedAs(t, err, aegisagent.DeniedByPolicy, "")
	_, err = protect(t, w.agentsOwn, update(), ran.run)(trusted(t), note{"c", 1})
	must(t, err)
	equal(t, ran.ran(), []note{{"a", 1}, {"c", 1}})
}

func TestRealAnExportVerifiesUnderThePinnedKeysAndAChangedByteDoesNot(t *testing.T) {
	proof.Of(t, "verify-receipts", "client-api")
	w, ctx := here(t), context.Background()
	_, err := protect(t, w.agentsOwn, update(), (&recorder{}).run)(trusted(t), note{"a", 1})
	must(t, err)
	w.hasOutcomes("ok")
	var out bytes.Buffer
	must(t, w.admin.ExportReceipts(ctx, &out))
	roots, err := receipts.ReadRoots(w.roots()...)
	must(t, err)
	report, err := receipts.VerifyExport(bytes.NewReader(out.Bytes()), roots)
	must(t, err)
	if report.Verdict != receipts.Valid || report.Receipts != int64(bytes.Count(out.Bytes(), []byte("\n"))) || report.Receipts < 5 {
		t.Fatalf("%+v", report)
	}
	changed := bytes.Replace(out.Bytes(), []byte(`"decision":"allow"`), []byte(`"decision":"deny"`), 1)
	report, err = receipts.VerifyExport(bytes.NewReader(changed), roots)
	must(t, err)
	if report.Failure == nil || (report.Failure.Code != "hash_mismatch" && report.Failure.Code != "digest_mismatch") {
		t.Fatalf("%+v", report)
	}
	newest, err := w.admin.Receipts(ctx, "", "", aegisagent.Page{Limit: 1})
	must(t, err)
	id := newest[0]["event_id"].(string)
	event, err := w.admin.Receipt(ctx, id)
	must(t, err)
	verified, err := receipts.VerifyEvent(event, roots)
	must(t, err)
	verdict, err := w.admin.VerifyReceipt(ctx, id)
	must(t, err)
	equal(t, []any{verified.Signed, verified.EventID, verdict.Verdict, *verdict.Lane, *verdict.Seq}, []any{true, id, "valid", verified.Lane, verified.Seq})
}

func TestRealTheRestOfTheClient(t *testing.T) {
	proof.Of(t, "client-api")
	w, ctx := here(t), context.Background()
	registrar := w.client(w.registrar)
	again, err := registrar.Register(ctx, aegisagent.AgentRegistration{AgentKey: "bot", Name: "Bot", Environment: "production", RiskTier: "low", OwnerTeam: "team"})
	must(t, err)
	equal(t, []string{again.ID, again.AgentKey}, []string{w.agent.ID, "bot"})
	tool, err := registrar.PutTool(ctx, aegisagent.JSON{"tool": "t", "name": "T", "actions": []any{}})
	must(t, err)
	equal(t, tool["tool"], any("t"))
	agent := w.client(again.AgentToken.Reveal())
	call := aegisagent.ToolCall{Tool: "crm", Action: "refund", MutatesState: true, Parameters: map[string]any{"amount": 1}}
	within := trusted(t)
	first, err := agent.Authorize(within, call, aegisagent.AuthorizeOptions{RequestID: "one"})
	must(t, err)
	_, err = agent.Authorize(within, call, aegisagent.AuthorizeOptions{RequestID: "one", Fields: aegisagent.JSON{"user": aegisagent.JSON{"id": "u"}}})
	refused(t, err, 409, "idempotency_payload_mismatch")
	second, err := agent.Authorize(within, call, aegisagent.AuthorizeOptions{RequestID: "one"})
	must(t, err)
	equal(t, first.Approval.ApprovalID, second.Approval.ApprovalID)
	for end := time.Now().Add(longEnough); !w.has(first.Approval.ApprovalID) && time.Now().Before(end); {
		time.Sleep(20 * time.Millisecond)
	}
	pending, err := w.approver.Approvals(ctx, "PENDING", aegisagent.Page{})
	must(t, err)
	equal(t, []string{pending[0].ApprovalID, pending[0].Current().Action}, []string{first.Approval.ApprovalID, "refund"})
	equal(t, []any{pending[0].RiskLevel, pending[0].MatchedPolicies, pending[0].EditedBy, pending[0].UserID, len(pending[0].PolicyDigest)}, []any{
		first.RiskLevel, first.MatchedPolicies, (*string)(nil), (*string)(nil), 64,
	})
	hash, err := call.ActionHash()
	must(t, err)
	outcome, err := agent.Outcome(ctx, second.DecisionID, aegisagent.OutcomeOK, hash, map[string]any{"n": 1})
	must(t, err)
	equal(t, []string{outcome.Status, *outcome.Violation}, []string{"ok", "executed_without_approval"})
	summary, err := w.admin.Summary(ctx)
	must(t, err)
	equal(t, summary["approvals_pending"], any(1))
	ready, err := w.admin.Ready(ctx)
	must(t, err)
	equal(t, ready["ready"], any(true))
	w.call("POST", "/v1/mcp/servers", map[string]any{"key": "files", "name": "Files", "tools": []any{}}, 201)
	quarantined, err := w.admin.QuarantineMCPServer(ctx, "files", "a", 60)
	must(t, err)
	equal(t, quarantined.Verdict, "quarantined")
	restored, err := w.admin.RestoreMCPServer(ctx, "files", "a")
	must(t, err)
	equal(t, restored.Verdict, "free")
	frozen, err := w.admin.FreezeAgent(ctx, again.ID, "a", 60)
	must(t, err)
	equal(t, frozen.Holds[0].Until != nil, true)
	revoked, err := w.admin.RevokeAgent(ctx, again.ID, "b")
	must(t, err)
	equal(t, revoked.Verdict, "revoked")
	_, err = agent.FreezeAgent(ctx, again.ID, "c", 0)
	refused(t, err, 403, "wrong_role")
}

func TestRealDecisionsEventsAlertsAndIncidentsAreRead(t *testing.T) {
	proof.Of(t, "client-api")
	w, ctx, page := here(t), context.Background(), aegisagent.Page{Limit: 500}
	run, err := aegisagent.WithRun(trusted(t), "run-1")
	must(t, err)
	call := aegisagent.ToolCall{Tool: "crm", Action: "refund", MutatesState: true, Parameters: map[string]any{"amount": 1}}
	hash, err := call.ActionHash()
	must(t, err)
	decided, err := w.agentsOwn.Authorize(run, call, aegisagent.AuthorizeOptions{Fields: aegisagent.JSON{"trace": aegisagent.JSON{"run_id": "run-1"}}})
	must(t, err)
	// What an incident is made of.
	_, err = w.agentsOwn.Outcome(ctx, decided.DecisionID, aegisagent.OutcomeOK, hash, nil)
	must(t, err)
	var incidents []aegisagent.JSON
	within(t, longEnough, "an incident is open", func() bool {
		incidents, err = w.admin.Incidents(ctx, page)
		must(t, err)
		return len(incidents) > 0
	})
	id := incidents[0]["incident_id"].(string)
	incident, err := w.admin.Incident(ctx, id)
	must(t, err)
	equal(t, incident["incident_id"], any(id))
	alerts, err := w.admin.Alerts(ctx, page)
	must(t, err)
	alert, err := w.admin.Alert(ctx, alerts[0]["alert_id"].(string))
	must(t, err)
	equal(t, alert["alert_id"], alerts[0]["alert_id"])
	closed, err := w.admin.CloseIncident(ctx, id, "a test")
	must(t, err)
	equal(t, []any{closed["incident_id"], closed["status"]}, []any{id, "closed"})
	within(t, longEnough, "decision and outcome are events", func() bool {
		decisions, err := w.admin.Decisions(ctx, "", "", page)
		must(t, err)
		return len(decisions) > 0 && len(w.outcomes()) > 0
	})
	decision, err := w.admin.Decision(ctx, decided.DecisionID)
	must(t, err)
	equal(t, decision["decision"], any("require_approval"))
	for filter, count := range map[[2]string]int{{"", ""}: 1, {w.agent.ID, "run-1"}: 1, {"", "run-2"}: 0, {"another", ""}: 0} {
		found, err := w.admin.Decisions(ctx, filter[0], filter[1], page)
		must(t, err)
		if len(found) != count || count == 1 && found[0]["event_id"] != decided.DecisionID {
			t.Fatal(filter, found)
		}
	}
	for filter, count := range map[[3]string]int{
		{"tool_outcome", "", ""}: 1, {"tool_outcome", w.agent.ID, ""}: 1, {"tool_outcome", "another", ""}: 0, {"replay_attempt", "", ""}: 0,
		{"authorize_decision", "", "run-1"}: 1, {"authorize_decision", "", "run-2"}: 0,
	} {
		found, err := w.admin.Events(ctx, filter[0], filter[1], filter[2], page)
		must(t, err)
		equal(t, []any{filter, len(found)}, []any{filter, count})
	}
}

func TestRealACallThatIsCancelledWhileItWaitsDoesNotRun(t *testing.T) {
	proof.Of(t, "e2e-cancel")
	w, ran := here(t), &recorder{}
	ctx, cancel := context.WithCancel(trusted(t))
	settings := w.refund(func(string) { cancel() })
	_, err := protect(t, w.agentsOwn, settings, ran.run)(ctx, note{"a", 1})
	denied := deniedAs(t, err, aegisagent.DeniedUnavailable, "")
	if !errors.Is(err, context.Canceled) || denied.ApprovalID == "" || len(ran.ran()) > 0 {
		t.Fatal(err)
	}
}

func TestRealACallThatIsCancelledWhileItRunsIsReportedAsAmbiguous(t *testing.T) {
	proof.Of(t, "e2e-cancel")
	w := here(t)
	ctx, cancel := context.WithCancel(trusted(t))
	_, err := protect(t, w.agentsOwn, update(), func(ctx context.Context, _ note) (int, error) {
		cancel()
		<-ctx.Done()
		return 0, ctx.Err()
	})(ctx, note{"1", 1})
	equal(t, errors.Is(err, context.Canceled), true)
	w.hasOutcomes("ambiguous")
}
