package aegisagent_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	aegisagent "github.com/aegisagent/aegisagent-go"
	"github.com/aegisagent/aegisagent-go/internal/proof"
)

// Answers that no server of ours gives. Each is a typed denial, and the function does not run.

func TestADecisionThatIsNotRightIsADenial(t *testing.T) {
	proof.Of(t, "hostile-hash")
	approval := map[string]any{"approval_id": "i", "status": "PENDING", "approver_group": "g", "expires_at": "x", "action_hash": otherHash()}
	for name, one := range map[string]struct {
		change change
		code   string
	}{
		"an unknown decision":     {changed(map[string]any{"decision": "maybe"}), "unknown_decision"},
		"a decision in capitals":  {changed(map[string]any{"decision": "ALLOW"}), "unknown_decision"},
		"a decision that is true": {changed(map[string]any{"decision": true}), "bad_reply"},
		"no decision":             {without("decision"), "bad_reply"},
		"no word on an approval":  {without("approval"), "bad_reply"},
		"another action's hash":   {changed(map[string]any{"action_hash": otherHash()}), "action_hash_mismatch"},
		"a hash in capitals":      {changed(map[string]any{"action_hash": strings.Repeat("AB", 32)}), "bad_reply"},
		"a hash and a line":       {changed(map[string]any{"action_hash": aHash + "\n"}), "bad_reply"},
		"no hash":                 {without("action_hash"), "bad_reply"},
		"keys of another case": {func(honest answer) answer {
			return changed(map[string]any{"Action_Hash": aHash})(without("action_hash")(honest))
		}, "bad_reply"},
		"a dry run":                   {changed(map[string]any{"dry_run": true}), "bad_reply"},
		"another canonical form":      {inside("receipt", map[string]any{"canon_version": "aegis-jcs-2"}), "bad_reply"},
		"no receipt":                  {inside("receipt", map[string]any{"receipt_hash": nil}), "receipt_missing"},
		"a receipt that is none":      {inside("receipt", map[string]any{"receipt_hash": "x"}), "bad_reply"},
		"an allow with an approval":   {changed(map[string]any{"approval": approval}), "bad_reply"},
		"an approval that is missing": {changed(map[string]any{"decision": "require_approval"}), "bad_reply"},
		"a label that was loosened":   {changed(map[string]any{"root_trust_level": "trusted_internal_signed"}), "trust_loosened"},
		"an id that leads elsewhere":  {changed(map[string]any{"decision_id": ".."}), "bad_reply"},
		"an id of two":                {changed(map[string]any{"decision_id": "a/b"}), "bad_reply"},
	} {
		edge := newFakeEdge(t)
		edge.replace["authorize"] = one.change
		err := attack(t, edge, 10*time.Second)
		deniedAs(t, fmt.Errorf("%s: %w", name, err), aegisagent.DeniedUnverified, one.code)
	}
	edge := newFakeEdge(t)
	edge.decision, edge.replace["authorize"] = "require_approval", inside("approval", map[string]any{"action_hash": otherHash()})
	deniedAs(t, attack(t, edge, 10*time.Second), aegisagent.DeniedUnverified, "action_hash_mismatch")
}

func TestAnApprovalThatIsNotRightIsADenial(t *testing.T) {
	proof.Of(t, "hostile-hash")
	swapped := map[string]any{"note": "swapped", "amount": 1}
	for name, one := range map[string]struct {
		change change
		code   string
	}{
		"another action's hash": {changed(map[string]any{"action_hash": otherHash()}), "bad_reply"}, "another original": {changed(map[string]any{"original_action_hash": otherHash()}), "bad_reply"},
		"an unknown status": {changed(map[string]any{"status": "YES"}), "unknown_status"}, "a status in lower case": {changed(map[string]any{"status": "approved"}), "unknown_status"},
		"another approval": {changed(map[string]any{"approval_id": "other"}), "action_hash_mismatch"}, "no status": {without("status"), "bad_reply"},
		"another action": {inside("tool_call", map[string]any{"parameters": swapped}), "bad_reply"}, "edited, and not": {changed(map[string]any{"is_edited": true}), "bad_reply"},
		"no word on an edit": {without("edited_tool_call"), "bad_reply"},
		"another action, hashed rightly": {func(honest answer) answer {
			return changed(map[string]any{"action_hash": otherHash(), "original_action_hash": otherHash()})(inside("tool_call", map[string]any{"parameters": swapped})(honest))
		}, "action_hash_mismatch"},
	} {
		edge := newFakeEdge(t)
		edge.decision, edge.replace["approval"] = "require_approval", one.change
		err := attack(t, edge, 10*time.Second)
		deniedAs(t, fmt.Errorf("%s: %w", name, err), aegisagent.DeniedUnverified, one.code)
		equal(t, len(edge.sent("consume")), 0)
	}
}

func TestAConsumeThatIsNotRightIsADenial(t *testing.T) {
	proof.Of(t, "hostile-hash")
	for name, one := range map[string]struct {
		change change
		code   string
	}{
		"another action's hash": {changed(map[string]any{"action_hash": otherHash()}), "action_hash_mismatch"},
		"another approval":      {changed(map[string]any{"approval_id": "x"}), "action_hash_mismatch"},
		"another status":        {changed(map[string]any{"status": "pending"}), "action_hash_mismatch"}, "no hash": {without("action_hash"), "bad_reply"},
		"wrong hash": {instead(answer{status: 409, body: refusal("action_hash_mismatch")}), "action_hash_mismatch"}, "wrong agent": {instead(answer{status: 409, body: refusal("wrong_agent")}), "wrong_agent"},
	} {
		edge := newFakeEdge(t)
		edge.decision, edge.replace["consume"] = "require_approval", one.change
		err := attack(t, edge, 10*time.Second)
		deniedAs(t, fmt.Errorf("%s: %w", name, err), aegisagent.DeniedUnverified, one.code)
	}
	for code, kind := range map[string]aegisagent.DeniedKind{"approval_consumed": aegisagent.DeniedByApprover, "agent_frozen": aegisagent.DeniedByPolicy} {
		edge := newFakeEdge(t)
		edge.decision = "require_approval"
		edge.always("consume", answer{status: 409, body: refusal(code)})
		deniedAs(t, attack(t, edge, 10*time.Second), kind, code)
	}
}

var places = []string{"authorize", "approval", "consume"}

func TestGarbageIsADenialWhereverItComes(t *testing.T) {
	proof.Of(t, "hostile-garbage")
	for _, where := range places {
		for name, said := range garbage {
			edge := newFakeEdge(t)
			edge.decision, edge.replace[where] = "require_approval", said
			err := attack(t, edge, 10*time.Second)
			kind := aegisagent.DeniedUnverified
			if name == "201" || name == "204" {
				kind = aegisagent.DeniedUnavailable
			}
			denied := deniedAs(t, fmt.Errorf("%s: %s: %w", where, name, err), kind, "")
			equal(t, len(edge.sent(where)), 1)
			equal(t, strings.Contains(denied.Reason, "an answer of more than"), name == "endless")
		}
	}
	// What the client did not want, less what lay in the buffers of the network.
	if taken := endlessTaken.Load() / int64(len(places)); taken > 64<<20 {
		t.Fatalf("%d bytes of an answer without end were taken", taken)
	}
}

func TestAServerErrorIsADenialWhereverItComes(t *testing.T) {
	proof.Of(t, "hostile-500")
	for _, where := range places {
		for status, said := range serverErrors {
			edge := newFakeEdge(t)
			edge.decision = "require_approval"
			edge.always(where, said)
			err := attack(t, edge, 10*time.Second)
			var kinds []aegisagent.DeniedKind
			for _, kind := range []aegisagent.DeniedKind{aegisagent.DeniedUnavailable, aegisagent.DeniedByPolicy} {
				if strings.Contains(fmt.Sprint(err), "denied") && errorsIs(err, kind) {
					kinds = append(kinds, kind)
				}
			}
			if len(kinds) != 1 || (kinds[0] == aegisagent.DeniedByPolicy && (where != "consume" || status != 409)) {
				t.Fatal(where, status, err)
			}
			times := 1
			if status == 429 || (status == 503 && where != "approval") {
				times = 3
			}
			if asked := len(edge.sent(where)); where != "approval" && asked != times {
				t.Fatal(where, status, "was asked for", asked)
			}
		}
	}
}

func TestASlowOrBrokenAnswerIsADenialWhereverItComes(t *testing.T) {
	proof.Of(t, "hostile-slow")
	for _, where := range places {
		for name, said := range broken {
			edge := newFakeEdge(t)
			edge.decision = "require_approval"
			edge.always(where, said)
			// What comes before it is honest, and must be there by then on a busy machine too.
			timeout := time.Second + time.Second/2
			if where != "authorize" {
				timeout = 3 * time.Second
			}
			ended := make(chan error, 1)
			go func() { ended <- attack(t, edge, timeout) }()
			select {
			case err := <-ended:
				denied := deniedAs(t, fmt.Errorf("%s: %s: %w", where, name, err), aegisagent.DeniedUnavailable, "")
				if where == "consume" {
					// Whether it was consumed is not known: the very same is asked again, and nothing else.
					equal(t, denied.Code, "consume_ambiguous")
					sentAgain(t, edge, "consume", 1, 3)
				}
			case <-time.After(40 * time.Second):
				t.Fatal(where, name, "the deadline is for the whole answer")
			}
		}
	}
}

func TestNobodyListeningIsADenial(t *testing.T) {
	proof.Of(t, "hostile-slow")
	ran := &recorder{}
	_, err := protect(t, clientTo(t, freeURL(t)), usual, ran.run)(context.Background(), note{})
	deniedAs(t, err, aegisagent.DeniedUnavailable, "unreachable")
	equal(t, len(ran.ran()), 0)
}

func freeURL(t *testing.T) string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer func() { _ = listener.Close() }()
	return "http://" + listener.Addr().String()
}

func TestAReasonIsACodeOnlyWhereItIsAShortOne(t *testing.T) {
	proof.Of(t, "hostile-garbage")
	long := "a_" + strings.Repeat("x", 62)
	for reason, code := range map[string]string{
		"agent_frozen": "agent_frozen", long: long, long + "x": "policy_denied", strings.Repeat("a_", 1<<20): "policy_denied", "because": "policy_denied",
		"Agent_frozen": "policy_denied", "_": "policy_denied", "___": "policy_denied", "a_1": "a_1", "ä_b": "policy_denied", "": "policy_denied",
	} {
		edge := newFakeEdge(t)
		edge.replace["authorize"] = changed(map[string]any{"decision": "deny", "reason": reason})
		_, err := protect(t, clientTo(t, edge.URL), usual, (&recorder{}).run)(context.Background(), note{"a", 1})
		deniedAs(t, err, aegisagent.DeniedByPolicy, code)
	}
}
