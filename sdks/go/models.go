package aegisagent

import (
	"fmt"
	"io"
	"log/slog"
)

// What the server answers, as docs/openapi.yaml has it. Read strictly; what may hold a secret or an argument is not shown by fmt.
//
// Words (decisions, statuses) stay texts here: whoever acts on one compares it with those it knows, and denies for any other.

// ToolCall is an action: exactly what the action hash covers.
type ToolCall struct {
	Tool         string         `json:"tool"`
	Action       string         `json:"action"`
	Resource     *string        `json:"resource"`
	MutatesState bool           `json:"mutates_state"`
	Parameters   map[string]any `json:"parameters"`
}

// ActionHash gives its hash; a [*CanonError] where it has no canonical form.
func (c ToolCall) ActionHash() (string, error) {
	return ActionHash(c.Tool, c.Action, c.Resource, c.MutatesState, c.Parameters)
}

// Format shows everything but the parameters.
func (c ToolCall) Format(state fmt.State, _ rune) {
	resource := "no resource"
	if c.Resource != nil {
		resource = fmt.Sprintf("%q", *c.Resource)
	}
	_, _ = fmt.Fprintf(state, "ToolCall(%q, %q, %s, mutates_state=%t)", c.Tool, c.Action, resource, c.MutatesState)
}

func (c ToolCall) asJSON() map[string]any {
	parameters := c.Parameters
	if parameters == nil {
		parameters = map[string]any{}
	}
	return fiveOf(c.Tool, c.Action, c.Resource, c.MutatesState, parameters)
}

func readToolCall(f fields) ToolCall {
	call := ToolCall{Tool: f.text("tool"), Action: f.text("action"), MutatesState: f.flag("mutates_state"), Parameters: f.object("parameters")}
	if !f.isAbsent("resource") {
		call.Resource = f.maybeText("resource")
	}
	return call
}

// ReceiptRef is the receipt of a decision. The hashes are nil only for an allowed, low-risk, non-sensitive read, and for a dry run.
type ReceiptRef struct {
	ReceiptID       string  `json:"receipt_id"`
	ReceiptHash     *string `json:"receipt_hash"`
	PrevReceiptHash *string `json:"prev_receipt_hash"`
	CanonVersion    string  `json:"canon_version"`
}

func readReceiptRef(f fields) ReceiptRef {
	return ReceiptRef{f.id("receipt_id"), f.maybeHash("receipt_hash"), f.maybeText("prev_receipt_hash"), f.text("canon_version")}
}

// ApprovalRef is the approval that a decision asks for. ExpiresAt is RFC 3339; ExpiresIn is the seconds until then by the server's clock,
// nil from a server that does not count them.
type ApprovalRef struct {
	ApprovalID    string `json:"approval_id"`
	Status        string `json:"status"`
	ApproverGroup string `json:"approver_group"`
	ExpiresAt     string `json:"expires_at"`
	ExpiresIn     *int64 `json:"expires_in"`
	ActionHash    string `json:"action_hash"`
}

func readApprovalRef(f fields) ApprovalRef {
	return ApprovalRef{
		f.id("approval_id"), f.text("status"), f.text("approver_group"), f.text("expires_at"), f.maybeSeconds("expires_in"),
		f.hash("action_hash"),
	}
}

// Token is a trust token: sent back as it came, and not shown; string(token) is its text.
type Token string

// String shows nothing.
func (Token) String() string { return hidden }

// GoString shows nothing.
func (Token) GoString() string { return hidden }

// Format shows nothing, whatever the verb.
func (Token) Format(state fmt.State, _ rune) { _, _ = io.WriteString(state, hidden) }

// LogValue shows nothing.
func (Token) LogValue() slog.Value { return slog.StringValue(hidden) }

// MarshalText shows nothing, and so does XML.
func (Token) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// MarshalJSON shows nothing.
func (Token) MarshalJSON() ([]byte, error) { return []byte(`"` + hidden + `"`), nil }

// Decision is the answer to an authorize call.
type Decision struct {
	DecisionID      string       `json:"decision_id"`
	Decision        string       `json:"decision"`
	Reason          string       `json:"reason"`
	MatchedPolicies []string     `json:"matched_policies"`
	RiskScore       int64        `json:"risk_score"`
	RiskLevel       string       `json:"risk_level"`
	RootTrustLevel  string       `json:"root_trust_level"`
	TrustToken      Token        `json:"trust_token"`
	ActionHash      string       `json:"action_hash"`
	DryRun          bool         `json:"dry_run"`
	Approval        *ApprovalRef `json:"approval"`
	Receipt         ReceiptRef   `json:"receipt"`
}

func readDecision(value any) (Decision, error) {
	f := fieldsOf(value, "the decision")
	decision := Decision{
		DecisionID: f.id("decision_id"), Decision: f.text("decision"), Reason: f.text("reason"), MatchedPolicies: f.texts("matched_policies"),
		RiskScore: f.integer("risk_score"), RiskLevel: f.text("risk_level"), RootTrustLevel: f.text("root_trust_level"),
		TrustToken: f.trustToken("trust_token"), ActionHash: f.hash("action_hash"), DryRun: f.flag("dry_run"),
		Receipt: readReceiptRef(f.fields("receipt")),
	}
	if !f.isNull("approval") {
		approval := readApprovalRef(f.fields("approval"))
		decision.Approval = &approval
	}
	return decision, f.err()
}

// Approval is an approval as people and agents see it. ActionHash is what a consume must present now.
type Approval struct {
	ApprovalID         string    `json:"approval_id"`
	Status             string    `json:"status"`
	AgentID            string    `json:"agent_id"`
	DecisionID         string    `json:"decision_id"`
	ActionHash         string    `json:"action_hash"`
	OriginalActionHash string    `json:"original_action_hash"`
	IsEdited           bool      `json:"is_edited"`
	ToolCall           ToolCall  `json:"tool_call"`
	EditedToolCall     *ToolCall `json:"edited_tool_call"`
	ApproverGroup      string    `json:"approver_group"`
	ApprovalsNeeded    int64     `json:"approvals_needed"`
	ApprovedBy         []string  `json:"approved_by"`
	SourceTrust        string    `json:"source_trust"`
	Reason             string    `json:"reason"`
	RequestedAt        string    `json:"requested_at"`
	ExpiresAt          string    `json:"expires_at"`
	ExpiresIn          *int64    `json:"expires_in"`
	// EditedBy is who edited it last, nil while nobody has; UserID for whom it is done, nil where nobody was named.
	EditedBy *string `json:"edited_by"`
	UserID   *string `json:"user_id"`
	// PolicyDigest, RiskLevel and MatchedPolicies are those of the decision that asks for it.
	PolicyDigest    string   `json:"policy_digest"`
	RiskLevel       string   `json:"risk_level"`
	MatchedPolicies []string `json:"matched_policies"`
}

// Current is the action that is up for approval: the edited one, if it was edited.
func (a Approval) Current() ToolCall {
	if a.EditedToolCall != nil {
		return *a.EditedToolCall
	}
	return a.ToolCall
}

// readApproval holds the hashes against the actions that stand beside them.
func readApproval(value any) (Approval, error) {
	f := fieldsOf(value, "the approval")
	approval := Approval{
		ApprovalID: f.id("approval_id"), Status: f.text("status"), AgentID: f.text("agent_id"), DecisionID: f.id("decision_id"),
		ActionHash: f.hash("action_hash"), OriginalActionHash: f.hash("original_action_hash"), IsEdited: f.flag("is_edited"),
		ToolCall: readToolCall(f.fields("tool_call")), ApproverGroup: f.text("approver_group"), ApprovalsNeeded: f.integer("approvals_needed"),
		ApprovedBy: f.texts("approved_by"), SourceTrust: f.text("source_trust"), Reason: f.text("reason"),
		RequestedAt: f.text("requested_at"), ExpiresAt: f.text("expires_at"), ExpiresIn: f.maybeSeconds("expires_in"),
		EditedBy: f.maybeText("edited_by"), UserID: f.maybeText("user_id"), PolicyDigest: f.hash("policy_digest"),
		RiskLevel: f.text("risk_level"), MatchedPolicies: f.texts("matched_policies"),
	}
	if !f.isNull("edited_tool_call") {
		edited := readToolCall(f.fields("edited_tool_call"))
		approval.EditedToolCall = &edited
	}
	if f.err() != nil {
		return Approval{}, f.err()
	}
	if approval.IsEdited != (approval.EditedToolCall != nil) {
		return Approval{}, badReply("`is_edited` of the approval contradicts `edited_tool_call`")
	}
	original, err := approval.ToolCall.ActionHash()
	current := original
	if err == nil && approval.IsEdited {
		current, err = approval.EditedToolCall.ActionHash()
	}
	if err != nil {
		return Approval{}, badReply("an action of the approval has no canonical form: %v", err)
	}
	if original != approval.OriginalActionHash || current != approval.ActionHash {
		return Approval{}, badReply("a hash of the approval is not that of the action beside it")
	}
	return approval, nil
}

// Consumed is the answer to a consume that won.
type Consumed struct {
	Status     string `json:"status"`
	ApprovalID string `json:"approval_id"`
	ActionHash string `json:"action_hash"`
}

func readConsumed(value any) (Consumed, error) {
	f := fieldsOf(value, "the consume")
	return Consumed{f.text("status"), f.id("approval_id"), f.hash("action_hash")}, f.err()
}

// Outcome is the receipt of an outcome. Violation says what was wrong with the execution, if anything.
type Outcome struct {
	DecisionID  string  `json:"decision_id"`
	OutcomeID   string  `json:"outcome_id"`
	Status      string  `json:"status"`
	Violation   *string `json:"violation"`
	ReceiptHash string  `json:"receipt_hash"`
}

func readOutcome(value any) (Outcome, error) {
	f := fieldsOf(value, "the outcome")
	return Outcome{f.id("decision_id"), f.id("outcome_id"), f.text("status"), f.maybeText("violation"), f.hash("receipt_hash")}, f.err()
}

// Registration is a registered agent with a fresh token, valid until ExpiresAt (RFC 3339).
type Registration struct {
	ID         string  `json:"id"`
	AgentKey   string  `json:"agent_key"`
	AgentToken *Secret `json:"agent_token"`
	ExpiresAt  string  `json:"expires_at"`
}

func readRegistration(value any) (Registration, error) {
	f := fieldsOf(value, "the registration")
	registration := Registration{ID: f.text("id"), AgentKey: f.text("agent_key"), ExpiresAt: f.text("expires_at")}
	token, err := NewSecret(f.text("agent_token"))
	if err != nil {
		f.fail("`agent_token` of the registration is no credential")
	}
	registration.AgentToken = token
	return registration, f.err()
}

// Hold is one reason why a target is held. Until nil: until it is released.
type Hold struct {
	HoldID string  `json:"hold_id"`
	Kind   string  `json:"kind"`
	Reason string  `json:"reason"`
	By     string  `json:"by"`
	Since  string  `json:"since"`
	Until  *string `json:"until"`
}

func readHold(f fields) Hold {
	return Hold{f.id("hold_id"), f.text("kind"), f.text("reason"), f.text("by"), f.text("since"), f.maybeText("until")}
}

// ContainedEdges are the edges of their own that serve the tenant: how many live, how many of those enforce a containment, and which are
// silent and enforce what they knew. Since is when the last of the live ones began to; nil while one does not.
type ContainedEdges struct {
	Live      int64    `json:"live"`
	Enforcing int64    `json:"enforcing"`
	Silent    []string `json:"silent"`
	Since     *string  `json:"since"`
}

func readContainedEdges(f fields) ContainedEdges {
	edges := ContainedEdges{Live: f.integer("live"), Enforcing: f.integer("enforcing"), Silent: f.texts("silent")}
	if !f.isAbsent("since") {
		since := f.text("since")
		edges.Since = &since
	}
	return edges
}

// Containment is what holds for an agent or an MCP server. Enforced: every edge that lives has confirmed it; it and Edges are nil in lists.
type Containment struct {
	TenantID   string `json:"tenant_id"`
	TargetType string `json:"target_type"`
	TargetID   string `json:"target_id"`
	Holds      []Hold `json:"holds"`
	Revoked    bool   `json:"revoked"`
	Revision   int64  `json:"revision"`
	IssuedAt   string `json:"issued_at"`
	Verdict    string `json:"verdict"`
	Enforced   *bool  `json:"enforced"`
	// Edges of their own.
	Edges *ContainedEdges `json:"edges"`
}

func readContainment(value any) (Containment, error) {
	f := fieldsOf(value, "the containment")
	containment := Containment{
		TenantID: f.text("tenant_id"), TargetType: f.text("target_type"), TargetID: f.text("target_id"), Holds: []Hold{},
		Revoked: f.flag("revoked"), Revision: f.integer("revision"), IssuedAt: f.text("issued_at"), Verdict: f.text("verdict"),
	}
	for _, hold := range f.items("holds") {
		containment.Holds = append(containment.Holds, readHold(f.within(hold, "a hold")))
	}
	if !f.isAbsent("enforced") {
		enforced := f.flag("enforced")
		containment.Enforced = &enforced
	}
	if !f.isAbsent("edges") {
		edges := readContainedEdges(f.fields("edges"))
		containment.Edges = &edges
	}
	return containment, f.err()
}

// ReceiptVerdict is what the server finds when it verifies one of its receipts now. The package receipts does it without the server.
type ReceiptVerdict struct {
	ReceiptID   string         `json:"receipt_id"`
	ReceiptHash *string        `json:"receipt_hash"`
	Lane        *string        `json:"lane"`
	Seq         *int64         `json:"seq"`
	Verdict     string         `json:"verdict"`
	Checks      map[string]any `json:"checks"`
	Failure     *string        `json:"failure"`
	// Other events that have its id, as they are; nil where there is none.
	SameID *[]JSON `json:"same_id"`
}

func readReceiptVerdict(value any) (ReceiptVerdict, error) {
	f := fieldsOf(value, "the verdict")
	verdict := ReceiptVerdict{
		ReceiptID: f.id("receipt_id"), ReceiptHash: f.maybeHash("receipt_hash"), Lane: f.maybeText("lane"), Verdict: f.text("verdict"),
		Checks: f.object("checks"), Failure: f.maybeText("failure"),
	}
	if !f.isNull("seq") {
		seq := f.integer("seq")
		verdict.Seq = &seq
	}
	if !f.isAbsent("same_id") {
		others := []JSON{}
		for _, item := range f.items("same_id") {
			others = append(others, f.within(item, "an event of the same id").members)
		}
		verdict.SameID = &others
	}
	return verdict, f.err()
}

func readObject(value any) (map[string]any, error) {
	f := fieldsOf(value, "the reply")
	return f.members, f.err()
}

// readList reads a list, each item by read.
func readList[T any](read func(any) (T, error)) func(any) ([]T, error) {
	return func(value any) ([]T, error) {
		items, isList := value.([]any)
		if !isList {
			return nil, badReply("the reply is not a list")
		}
		list := []T{}
		for _, item := range items {
			one, err := read(item)
			if err != nil {
				return nil, err
			}
			list = append(list, one)
		}
		return list, nil
	}
}
