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

// No server that answers: what runs all the same, and what waits.

func failsOpen() aegisagent.Settings {
	settings := usual
	settings.ReadOnly, settings.Risk, settings.FailOpenReads = true, aegisagent.RiskLow, true
	return settings
}

func TestAReadFailsOpenOnlyByNameAndOnlyWhereNoServerAnswers(t *testing.T) {
	proof.Of(t, "fail-open")
	edge, ran, log := newFakeEdge(t), &recorder{}, logged(t)
	client, ctx := clientTo(t, edge.URL), context.Background()
	closed := failsOpen()
	closed.FailOpenReads = false
	for _, said := range []answer{serverErrors[500], serverErrors[502], serverErrors[503], serverErrors[504], broken["broken off"]} {
		edge.always("authorize", said)
		_, err := protect(t, client, failsOpen(), ran.run)(ctx, note{"a", 1})
		must(t, err)
		_, err = protect(t, client, closed, ran.run)(ctx, note{"b", 1})
		deniedAs(t, err, aegisagent.DeniedUnavailable, "")
	}
	equal(t, ran.ran(), []note{{"a", 1}, {"a", 1}, {"a", 1}, {"a", 1}, {"a", 1}})
	equal(t, len(edge.sent("outcome")), 0)
	equal(t, strings.Count(log.String(), "runs without a decision"), 5)
	for name, said := range map[string]change{
		"401": instead(serverErrors[401]), "403": instead(serverErrors[403]), "409": instead(serverErrors[409]), "429": instead(serverErrors[429]),
		"garbage": garbage["no JSON"], "hash": changed(map[string]any{"action_hash": otherHash()}), "maybe": changed(map[string]any{"decision": "maybe"}),
		"deny": changed(map[string]any{"decision": "deny"}), "redirect": garbage["307"],
	} {
		edge.set(func() { edge.replace["authorize"] = said })
		if _, err := protect(t, client, failsOpen(), ran.run)(ctx, note{}); err == nil {
			t.Fatal(name)
		}
	}
	equal(t, len(ran.ran()), 5)
}

func TestNothingFailsOpenForTaintedWorkOrAContainedAgentOrWithoutACredential(t *testing.T) {
	proof.Of(t, "fail-open")
	edge, ran := newFakeEdge(t), &recorder{}
	client, ctx := clientTo(t, edge.URL), context.Background()
	protected := protect(t, client, failsOpen(), ran.run)
	edge.always("authorize", serverErrors[503])
	for _, label := range []aegisagent.SourceTrust{aegisagent.UntrustedExternal, aegisagent.MaliciousSuspected, 0, 77} {
		_, err := protected(aegisagent.WithSourceTrust(ctx, label), note{})
		deniedAs(t, err, aegisagent.DeniedUnavailable, "busy")
	}
	edge.set(func() {
		edge.replace["authorize"] = changed(map[string]any{"decision": "deny", "reason": "agent_frozen"})
	})
	_, err := protected(ctx, note{})
	deniedAs(t, err, aegisagent.DeniedByPolicy, "agent_frozen")
	edge.always("authorize", serverErrors[503])
	_, err = protected(ctx, note{})
	deniedAs(t, err, aegisagent.DeniedUnavailable, "busy")
	without := clientOf(t, aegisagent.Config{BaseURL: edge.URL, TokenFunc: func(context.Context) (*aegisagent.Secret, error) { return nil, nil }})
	_, err = protect(t, without, failsOpen(), ran.run)(ctx, note{})
	deniedAs(t, err, aegisagent.DeniedUnavailable, "unreachable")
	equal(t, len(ran.ran()), 0)
}

func TestNothingFailsOpenFromTheWordOfAContainmentToTheWordThatItEnded(t *testing.T) {
	proof.Of(t, "fail-open")
	for reason, isContained := range map[string]bool{"agent_frozen": true, "agent_quarantined": true, "agent_revoked": true, "risk_too_high": false} {
		edge, ran := newFakeEdge(t), &recorder{}
		client, ctx := clientTo(t, edge.URL), context.Background()
		protected := protect(t, client, failsOpen(), ran.run)
		other := protect(t, client, usual, ran.run)
		away := func() error {
			edge.always("authorize", serverErrors[500])
			_, err := protected(ctx, note{"away", 1})
			return err
		}
		must(t, away())
		edge.set(func() { edge.replace["authorize"] = changed(map[string]any{"decision": "deny", "reason": reason}) })
		// What is heard in one function's call holds for every function of the client.
		_, err := other(ctx, note{})
		deniedAs(t, err, aegisagent.DeniedByPolicy, reason)
		if !isContained {
			must(t, away())
			equal(t, ran.ran(), []note{{"away", 1}, {"away", 1}})
			continue
		}
		for range 2 {
			deniedAs(t, away(), aegisagent.DeniedUnavailable, "internal")
		}
		equal(t, ran.ran(), []note{{"away", 1}})
		// An answer that is not obeyed is no word on the agent.
		edge.set(func() { edge.replace["authorize"] = changed(map[string]any{"action_hash": otherHash()}) })
		_, err = other(ctx, note{})
		deniedAs(t, err, aegisagent.DeniedUnverified, "action_hash_mismatch")
		deniedAs(t, away(), aegisagent.DeniedUnavailable, "internal")
		edge.set(func() { delete(edge.replace, "authorize") })
		_, err = other(ctx, note{"free", 1})
		must(t, err)
		must(t, away())
		equal(t, ran.ran(), []note{{"away", 1}, {"free", 1}, {"away", 1}})
	}
}

func TestNothingFailsOpenOnceThereIsADecision(t *testing.T) {
	proof.Of(t, "fail-open")
	for _, where := range []string{"approval", "consume"} {
		for name, said := range map[string]answer{
			"500": serverErrors[500], "502": serverErrors[502], "503": serverErrors[503], "504": serverErrors[504], "broken off": broken["broken off"],
		} {
			edge, ran, settings := newFakeEdge(t), &recorder{}, failsOpen()
			edge.decision, settings.Unreachable = "require_approval", 200*time.Millisecond
			edge.always(where, said)
			_, err := protect(t, clientTo(t, edge.URL), settings, ran.run)(context.Background(), note{"a", 1})
			deniedAs(t, fmt.Errorf("%s: %s: %w", where, name, err), aegisagent.DeniedUnavailable, "")
			if len(ran.ran())+len(edge.sent("outcome")) > 0 {
				t.Fatal(where, name, ran.ran())
			}
		}
	}
}

func TestAnEdgeThatIsGoneWhileAnApprovalIsWaitedForIsADenial(t *testing.T) {
	proof.Of(t, "edge-killed")
	edge := newFakeEdge(t)
	edge.decision, edge.statuses = "require_approval", []string{"PENDING"}
	edge.before["approval"] = func() {
		_ = edge.Listener.Close()
		go edge.CloseClientConnections()
		<-edge.ended
	}
	denied := deniedAs(t, attack(t, edge, 10*time.Second), aegisagent.DeniedUnavailable, "")
	if denied.ApprovalID == "" || denied.DecisionID == "" {
		t.Fatal(denied)
	}
}

func TestAnEdgeThatIsAwayForAMomentCostsNoApproval(t *testing.T) {
	proof.Of(t, "edge-killed")
	edge, ran, failures := newFakeEdge(t), &recorder{}, 3
	edge.decision, edge.statuses = "require_approval", []string{"PENDING", "APPROVED"}
	edge.replace["approval"] = func(honest answer) answer {
		if failures--; failures >= 0 {
			return serverErrors[503]
		}
		return honest
	}
	_, err := protect(t, clientTo(t, edge.URL), usual, ran.run)(context.Background(), note{})
	must(t, err)
	equal(t, len(ran.ran()), 1)
}
