package aegisagent_test

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	aegisagent "github.com/aegisagent/aegisagent-go"
)

// A small server that answers as the real one would, or as a hostile one could: any answer can be put in the place of an honest one. The
// tests against the real program are in endtoend_test.go and endtoend_approval_test.go; this is for what no real program does.

const aHash = "abababababababababababababababababababababababababababababababab"

// An answer: a body of bytes as it is, anything else as JSON; or what is done with the connection instead.
type answer struct {
	status  int
	body    any
	headers map[string]string
	raw     func(net.Conn)
}

type seen struct {
	name, path string
	body       []byte
	headers    http.Header
	remote     string
}

type fakeEdge struct {
	*httptest.Server
	mutex sync.Mutex
	// What it decides, and what it says of the approval, one after the other, the last one again and again; "404" is not there yet.
	decision, riskLevel string
	statuses            []string
	edited              map[string]any
	replace             map[string]func(answer) answer
	before              map[string]func()
	requests            []seen
	calls               map[string]map[string]any
	consumed, reported  map[string]string
	ended               chan struct{}
}

func newFakeEdge(t testing.TB) *fakeEdge {
	t.Helper()
	edge := &fakeEdge{
		decision: "allow", riskLevel: "medium", statuses: []string{"APPROVED"}, replace: map[string]func(answer) answer{},
		before: map[string]func(){}, calls: map[string]map[string]any{}, consumed: map[string]string{}, reported: map[string]string{},
		ended: make(chan struct{}),
	}
	edge.Server = httptest.NewServer(http.HandlerFunc(edge.serve))
	t.Cleanup(func() {
		close(edge.ended)
		edge.CloseClientConnections()
		edge.Close()
	})
	return edge
}

func (e *fakeEdge) serve(w http.ResponseWriter, r *http.Request) {
	name := nameOfRequest(r.URL.Path)
	body, _ := io.ReadAll(r.Body)
	e.mutex.Lock()
	e.requests = append(e.requests, seen{name, r.URL.EscapedPath(), body, r.Header.Clone(), r.RemoteAddr})
	before := e.before[name]
	e.mutex.Unlock()
	if before != nil {
		before()
	}
	said, change := e.honest(name, r.URL.Path, body)
	if change != nil {
		said = change(said)
	}
	if said.raw != nil {
		connection, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			panic(err)
		}
		defer func() { _ = connection.Close() }()
		said.raw(connection)
		return
	}
	data, isBytes := said.body.([]byte)
	if !isBytes {
		data, _ = json.Marshal(said.body)
	}
	for header, value := range said.headers {
		w.Header().Set(header, value)
	}
	w.WriteHeader(said.status)
	_, _ = w.Write(data)
}

func nameOfRequest(path string) string {
	switch last := path[strings.LastIndex(path, "/")+1:]; {
	case path == "/v1/authorize":
		return "authorize"
	case last == "consume" || last == "outcome":
		return last
	case strings.Contains(path, "/approvals/"):
		return "approval"
	}
	return "other"
}

func (e *fakeEdge) honest(name, path string, text []byte) (answer, func(answer) answer) {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	return e.answerTo(name, path, bodyOf(text)), e.replace[name]
}

// bodyOf reads a body; one that is as deep as an action may be is, with what is around it, too deep for the strict door.
func bodyOf(text []byte) map[string]any {
	value, err := aegisagent.ParseStrict(text, 1<<22)
	body, _ := value.(map[string]any)
	if err != nil {
		_ = json.Unmarshal(text, &body)
	}
	return body
}

func (e *fakeEdge) answerTo(name, path string, body map[string]any) answer {
	parts := strings.Split(path, "/")
	switch name {
	case "authorize":
		return answer{status: 200, body: e.decide(body)}
	case "approval":
		return e.approval(parts[3])
	case "consume":
		return e.consume(parts[3], body)
	case "outcome":
		key := path + " " + body["request_id"].(string)
		if _, isKnown := e.reported[key]; !isKnown {
			e.reported[key] = "o-" + strconv.Itoa(len(e.reported))
		}
		return answer{status: 201, body: map[string]any{
			"decision_id": parts[3], "outcome_id": e.reported[key], "status": body["status"], "violation": nil, "receipt_hash": aHash,
		}}
	}
	return answer{status: 200, body: map[string]any{}}
}

func (e *fakeEdge) consume(id string, body map[string]any) answer {
	if by, isConsumed := e.consumed[id]; isConsumed && by != body["request_id"] {
		return answer{status: 409, body: refusal("approval_consumed")}
	}
	e.consumed[id] = body["request_id"].(string)
	return answer{status: 200, body: map[string]any{"status": "consumed", "approval_id": id, "action_hash": body["claimed_action_hash"]}}
}

func hashOfCall(call map[string]any) string {
	var resource *string
	if named, isText := call["resource"].(string); isText {
		resource = &named
	}
	parameters, _ := call["parameters"].(map[string]any)
	mutates, _ := call["mutates_state"].(bool)
	hash, err := aegisagent.ActionHash(call["tool"].(string), call["action"].(string), resource, mutates, parameters)
	if err != nil {
		panic(err)
	}
	return hash
}

func (e *fakeEdge) decide(body map[string]any) map[string]any {
	call := body["tool_call"].(map[string]any)
	hash, approval := hashOfCall(call), any(nil)
	if e.decision == "require_approval" {
		id := randomID()
		e.calls[id] = call
		approval = map[string]any{
			"approval_id": id, "status": "PENDING", "approver_group": "release", "expires_at": later(900 * time.Second), "expires_in": 900,
			"action_hash": hash,
		}
	}
	return map[string]any{
		"decision_id": randomID(), "decision": e.decision, "reason": "because", "matched_policies": []string{}, "risk_score": 40,
		"risk_level": e.riskLevel, "root_trust_level": body["context"].(map[string]any)["source_trust"], "trust_token": "token",
		"action_hash": hash, "dry_run": false, "approval": approval,
		"receipt": map[string]any{
			"receipt_id": randomID(), "receipt_hash": aHash, "prev_receipt_hash": aHash, "canon_version": "aegis-jcs-1",
		},
	}
}

func (e *fakeEdge) approval(id string) answer {
	call, isKnown := e.calls[id]
	if !isKnown {
		return answer{status: 404, body: refusal("approval_not_found")}
	}
	status := e.statuses[0]
	if len(e.statuses) > 1 {
		e.statuses = e.statuses[1:]
	}
	if status == "404" {
		return answer{status: 404, body: refusal("approval_not_found")}
	}
	current, edited := hashOfCall(call), any(nil)
	if e.edited != nil {
		current, edited = hashOfCall(e.edited), wireOf(e.edited)
	}
	return answer{status: 200, body: map[string]any{
		"approval_id": id, "status": status, "agent_id": "a", "decision_id": "d", "action_hash": current,
		"original_action_hash": hashOfCall(call), "is_edited": e.edited != nil, "tool_call": wireOf(call), "edited_tool_call": edited,
		"approver_group": "release", "approvals_needed": 1, "approved_by": []string{}, "source_trust": "unknown", "reason": "r",
		"requested_at": later(0), "expires_at": later(900 * time.Second), "expires_in": 900,
		"edited_by": nil, "user_id": nil, "policy_digest": aHash, "risk_level": "high", "matched_policies": []string{"p"},
	}}
}

// wireOf writes an action as the SDK would: encoding/json would make an integer of a whole double.
func wireOf(call map[string]any) json.RawMessage {
	var resource *string
	if named, isText := call["resource"].(string); isText {
		resource = &named
	}
	action, err := aegisagent.Freeze(call["tool"].(string), call["action"].(string), resource, call["mutates_state"].(bool),
		call["parameters"].(map[string]any))
	if err != nil {
		panic(err)
	}
	return json.RawMessage(action.Text())
}

func refusal(code string) map[string]any {
	return map[string]any{"error": map[string]any{"code": code, "message": "m"}}
}

func randomID() string {
	var id [16]byte
	_, _ = rand.Read(id[:])
	return hex.EncodeToString(id[:])
}

func later(by time.Duration) string {
	return time.Now().UTC().Add(by).Format("2006-01-02T15:04:05.000000Z")
}

// set changes the edge while it may be asked.
func (e *fakeEdge) set(change func()) {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	change()
}

// always puts one answer in the place of the honest ones.
func (e *fakeEdge) always(name string, said answer) {
	e.set(func() { e.replace[name] = func(answer) answer { return said } })
}

func (e *fakeEdge) seen() []seen {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	return append([]seen{}, e.requests...)
}

func (e *fakeEdge) forget() { e.set(func() { e.requests = nil }) }

// sent gives the bodies that were sent to an endpoint: authorize, approval, consume, outcome.
func (e *fakeEdge) sent(name string) []map[string]any {
	bodies := []map[string]any{}
	for _, one := range e.seen() {
		if one.name != name {
			continue
		}
		bodies = append(bodies, bodyOf(one.body))
	}
	return bodies
}

func (e *fakeEdge) names() []string {
	names := []string{}
	for _, one := range e.seen() {
		names = append(names, one.name)
	}
	return names
}
