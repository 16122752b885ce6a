package aegisagent

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
)

// What stands between a call and its execution: authorize, wait for the approval, consume. It ends in a clearance for exactly the frozen
// action, or in Denied.

// Largest body of a request, bytes: what the server takes.
const maxBodyBytes = 1 << 20

// clearance is leave to run an action, once. decisionID is empty where a read failed open.
type clearance struct {
	action     *FrozenAction
	decisionID string
}

// clear asks for leave to run an action.
func (g *guard) clear(ctx context.Context, action *FrozenAction) (clearance, error) {
	// The origin is read once: a context of the caller's own could say another thing the next time.
	client, of := g.client, originOf(ctx)
	label := of.trust()
	body, err := g.authorizeBody(action, label, of)
	if err != nil {
		return clearance{}, err
	}
	asked := request[Decision]{method: http.MethodPost, path: "/v1/authorize", body: body, read: readDecision}
	decision, err := exchange(ctx, client, asked, client.timeout)
	if err != nil {
		if g.mayFailOpen(ctx, label, err) {
			slog.Warn("aegisagent: no server can be asked; a read runs without a decision", "tool", action.tool, "action", action.action)
			return clearance{action: action}, nil
		}
		return clearance{}, deniedBy(err, false)
	}
	if wrong := checkDecision(action, label, decision); wrong != nil {
		wrong.DecisionID = decision.DecisionID
		return clearance{}, wrong
	}
	client.tokens.keep(of.runID, trustOf(decision.RootTrustLevel), string(decision.TrustToken))
	client.isContained.Store(decision.Decision == "deny" && isContainment(decision.Reason))
	switch decision.Decision {
	case "allow":
	case "require_approval":
		approved, err := g.approved(ctx, action, *decision.Approval)
		if err != nil {
			return clearance{}, about(err, decision)
		}
		action = approved
	default:
		code := "policy_denied"
		if isCode(decision.Reason) {
			code = decision.Reason
		}
		return clearance{}, about(denied(DeniedByPolicy, code, shownText(decision.Reason, nil)), decision)
	}
	if err := ctx.Err(); err != nil {
		return clearance{}, about(deniedBy(noAnswer(err), false), decision)
	}
	return clearance{action, decision.DecisionID}, nil
}

// about names the decision and its approval in a denial.
func about(err error, decision Decision) error {
	var refused *Denied
	if errors.As(err, &refused) {
		refused.DecisionID = decision.DecisionID
		if decision.Approval != nil {
			refused.ApprovalID = decision.Approval.ApprovalID
		}
	}
	return err
}

func (g *guard) authorizeBody(action *FrozenAction, label SourceTrust, of origin) ([]byte, error) {
	user := any(nil)
	if of.user.ID != "" {
		user = present(JSON{"id": of.user.ID, "role": of.user.Role})
	}
	context := present(JSON{"source_trust": label.String(), "channel": g.settings.Channel})
	context["contains_sensitive_data"] = g.settings.ContainsSensitiveData
	rest := JSON{
		"request_id": freshRequestID(), "agent": g.client.agent, "context": context,
		"trace":         present(JSON{"run_id": of.runID, "trust_token": g.client.tokens.get(of.runID)}),
		"canon_version": CanonVersion,
	}
	if user != nil {
		rest["user"] = user
	}
	head := appendJSON(nil, rest, appendExactDouble)
	// The action's own text, not one made anew: what was hashed is what is sent.
	body := append(head[:len(head)-1], `,"tool_call":`+action.text+"}"...)
	if len(body) > maxBodyBytes {
		return nil, denied(DeniedUnfreezable, "size_exceeded", "the call is larger than the 1 MiB that a server takes")
	}
	return body, nil
}

// mayFailOpen: only a read whose author said so, only while no server can be asked, and never for tainted work, a contained agent, a
// caller who has given up, or a client that was closed.
func (g *guard) mayFailOpen(ctx context.Context, label SourceTrust, err error) bool {
	var failure *RequestFailed
	hasGivenUp := ctx.Err() != nil || g.client.transport.isClosed.Load()
	if !g.settings.FailOpenReads || hasGivenUp || !errors.As(err, &failure) {
		return false
	}
	isAway := failure.Kind == Unreachable
	switch failure.Status {
	case 500, 502, 503, 504:
		isAway = isAway || failure.Kind == ApiError
	}
	isHarmless := g.settings.ReadOnly && !g.settings.ContainsSensitiveData && label < UntrustedExternal
	return isAway && isHarmless && !g.client.isContained.Load()
}

// checkDecision says what is wrong with a decision, before it is obeyed (SPEC section 7.4, in its order).
func checkDecision(action *FrozenAction, label SourceTrust, decision Decision) *Denied {
	approval := decision.Approval
	isHarmless := decision.Decision == "allow" && !action.mutatesState && decision.RiskLevel == "low"
	switch {
	case decision.Decision == "deny":
		return nil
	case decision.Decision != "allow" && decision.Decision != "require_approval":
		return unverified("unknown_decision", "the server answered with a decision that this version does not know")
	case decision.ActionHash != action.hash:
		return unverified("action_hash_mismatch", "the server decided about another action than the one that was asked for")
	case decision.DryRun || decision.Receipt.CanonVersion != CanonVersion:
		return unverified("bad_reply", "the decision is a dry run, or made with another canonical form")
	case trustOf(decision.RootTrustLevel) < label:
		return unverified("trust_loosened", "the server took the call for more trusted than it was labelled")
	case decision.Receipt.ReceiptHash == nil && !isHarmless:
		return unverified("receipt_missing", "the decision has no receipt, and only that of a harmless read may have none")
	case (decision.Decision == "require_approval") != (approval != nil):
		return unverified("bad_reply", "decision and approval contradict each other")
	case approval != nil && approval.ActionHash != action.hash:
		return unverified("action_hash_mismatch", "the approval is for another action than the one that was asked for")
	}
	return nil
}

func unverified(code, reason string) *Denied { return denied(DeniedUnverified, code, reason) }

func isContainment(reason string) bool {
	return reason == "agent_frozen" || reason == "agent_quarantined" || reason == "agent_revoked"
}

// isCode says whether a reason is a code: a short word of lower-case letters, digits and at least one `_`.
func isCode(reason string) bool {
	return isWord(reason) && reason == strings.ToLower(reason) && strings.Contains(reason, "_") && strings.Trim(reason, "_") != ""
}

// deniedBy makes a denial of a request that failed.
func deniedBy(err error, isConsume bool) error {
	var failure *RequestFailed
	if !errors.As(err, &failure) {
		// There is no credential to ask with.
		refused := denied(DeniedUnavailable, "unreachable", err.Error())
		refused.cause = err
		return refused
	}
	made := denied(DeniedUnavailable, failure.Code, failure.Reason)
	made.cause = failure
	switch {
	case failure.Kind == BadReply:
		made.Kind = DeniedUnverified
	case failure.Kind == Unreachable && isConsume && failure.Sent:
		made.Code, made.Reason = "consume_ambiguous", "whether the approval was consumed is not known, so the function does not run"
	case failure.Kind == ApiError && isConsume && failure.Status == http.StatusConflict:
		made.Kind = refusalKind(failure.Code)
	}
	return made
}

func refusalKind(code string) DeniedKind {
	switch {
	case code == "action_hash_mismatch" || code == "wrong_agent":
		return DeniedUnverified
	case strings.HasPrefix(code, "approval_"):
		return DeniedByApprover
	}
	return DeniedByPolicy
}
