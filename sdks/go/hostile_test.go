package aegisagent_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	aegisagent "github.com/aegisagent/aegisagent-go"
	"github.com/aegisagent/aegisagent-go/internal/proof"
)

// Answers that no server of ours gives. Each is a typed denial, and the function does not run.

type change = func(answer) answer

func otherHash() string {
	resource := "customer-1"
	hash, _ := aegisagent.ActionHash("crm", "update_note", &resource, true, map[string]any{"note": "swapped", "amount": 1})
	return hash
}

func bodyWith(honest answer, fields map[string]any) answer {
	body := maps.Clone(honest.body.(map[string]any))
	maps.Copy(body, fields)
	honest.body = body
	return honest
}

func changed(fields map[string]any) change {
	return func(honest answer) answer { return bodyWith(honest, fields) }
}

func inside(name string, fields map[string]any) change {
	return func(honest answer) answer {
		inner, isObject := honest.body.(map[string]any)[name].(map[string]any)
		if !isObject {
			// An action, which is raw JSON here.
			text, _ := honest.body.(map[string]any)[name].(json.RawMessage)
			inner = bodyOf(text)
		}
		return bodyWith(honest, map[string]any{name: bodyWith(answer{body: inner}, fields).body})
	}
}

func without(name string) change {
	return func(honest answer) answer {
		cut := bodyWith(honest, nil)
		delete(cut.body.(map[string]any), name)
		return cut
	}
}

func instead(said answer) change { return func(answer) answer { return said } }

// raw writes parts to the connection, with a pause after each.
func raw(pause time.Duration, parts ...string) answer {
	return answer{raw: func(connection net.Conn) {
		for _, part := range parts {
			if _, err := connection.Write([]byte(part)); err != nil {
				return
			}
			time.Sleep(pause)
		}
	}}
}

const head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"

var (
	endless = answer{raw: func(connection net.Conn) {
		_, _ = connection.Write([]byte(head + "\r\n"))
		for range 4000 {
			count, err := connection.Write([]byte(strings.Repeat(" ", 1<<16)))
			if endlessTaken.Add(int64(count)); err != nil {
				return
			}
		}
	}}
	endlessTaken atomic.Int64
	endlessHead  = answer{raw: func(connection net.Conn) {
		for range 400 {
			if _, err := connection.Write([]byte(head + "X-Header: " + strings.Repeat("x", 1<<16) + "\r\n")); err != nil {
				return
			}
		}
	}}
	garbage = map[string]change{
		"no JSON": instead(answer{status: 200, body: []byte("<html>allow</html>")}), "empty": instead(answer{status: 200, body: []byte("")}),
		"null": instead(answer{status: 200, body: nil}), "a list": instead(answer{status: 200, body: []any{}}),
		"a word": instead(answer{status: 200, body: "allow"}), "an empty object": instead(answer{status: 200, body: map[string]any{}}),
		"a key twice": instead(answer{status: 200, body: []byte(`{"decision":"deny","decision":"allow"}`)}),
		"not UTF-8":   instead(answer{status: 200, body: []byte("\xff\xfe{}")}),
		"201":         func(honest answer) answer { honest.status = 201; return honest }, "204": instead(answer{status: 204, body: []byte{}}),
		"307":     instead(answer{status: 307, body: map[string]any{}, headers: map[string]string{"Location": "http://127.0.0.1:1/v1/authorize"}}),
		"encoded": instead(answer{status: 200, body: []byte("\x1f\x8b"), headers: map[string]string{"Content-Encoding": "gzip"}}),
		"good, but encoded": func(honest answer) answer {
			honest.headers = map[string]string{"Content-Encoding": "gzip"}
			return honest
		},
		"endless": instead(endless),
	}
	serverErrors = map[int]answer{
		500: {status: 500, body: refusal("internal")}, 502: {status: 502, body: []byte("bad gateway")}, 503: {status: 503, body: refusal("busy")},
		504: {status: 504, body: []byte("<html>")}, 429: {status: 429, body: refusal("rate_limited")}, 401: {status: 401, body: refusal("invalid_token")},
		403: {status: 403, body: refusal("wrong_role")}, 404: {status: 404, body: refusal("unknown_route")},
		408: {status: 408, body: refusal("body_too_slow")}, 409: {status: 409, body: refusal("replay_nonce_reused")},
		418: {status: 418, body: map[string]any{"error": "teapot"}}, 101: raw(0, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nallow"),
	}
	broken = map[string]answer{
		"broken off": raw(0, head+"Content-Length: 1000\r\n\r\n", `{"decision": "allow"`), "no HTTP": raw(0, "allow\r\n\r\n"),
		"slow": raw(time.Minute, ""), "dripped head": raw(100*time.Millisecond, strings.Split(head+"X: "+strings.Repeat("x", 100), "")...),
		"dripped body":      raw(100*time.Millisecond, append([]string{head + "\r\n"}, strings.Split(strings.Repeat(" ", 100), "")...)...),
		"an endless head":   endlessHead,
		"a hundred 100s":    raw(0, strings.Repeat("HTTP/1.1 100 Continue\r\nX: y\r\n\r\n", 10_000)),
		"two lengths":       raw(0, head+"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"),
		"a broken chunk":    raw(0, head+"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n"),
		"a chunk too short": raw(0, head+"Transfer-Encoding: chunked\r\n\r\nff\r\n{}"),
	}
)

// attack calls a protected function once, and holds that it did not run.
func attack(t *testing.T, edge *fakeEdge, timeout time.Duration) error {
	t.Helper()
	client := clientOf(t, aegisagent.Config{BaseURL: edge.URL, Timeout: timeout})
	ran, settings := &recorder{}, usual
	settings.Unreachable = 200 * time.Millisecond
	_, err := protect(t, client, settings, ran.run)(context.Background(), note{"a", 1})
	equal(t, len(ran.ran())+len(edge.sent("outcome")), 0)
	return err
}

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
			ended := make(chan error, 1)
			go func() { ended <- attack(t, edge, time.Second+time.Second/2) }()
			select {
			case err := <-ended:
				denied := deniedAs(t, fmt.Errorf("%s: %s: %w", where, name, err), aegisagent.DeniedUnavailable, "")
				if where == "consume" {
					// Whether it was consumed is not known: the very same is asked again, and nothing else.
					equal(t, denied.Code, "consume_ambiguous")
					sentAgain(t, edge, "consume", 1, 3)
				}
			case <-time.After(20 * time.Second):
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

func TestAnEdgeThatIsGoneWhileAnApprovalIsWaitedForIsADenial(t *testing.T) {
	proof.Of(t, "edge-killed")
	edge := newFakeEdge(t)
	edge.decision, edge.statuses = "require_approval", []string{"PENDING"}
	edge.before["approval"] = func() {
		_ = edge.Listener.Close()
		go edge.CloseClientConnections()
		<-edge.ended
	}
	denied := deniedAs(t, attack(t, edge, 2*time.Second), aegisagent.DeniedUnavailable, "")
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
