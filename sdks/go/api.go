package aegisagent

import (
	"context"
	"io"
	"net/http"
)

// AuthorizeOptions is more of an authorize request.
type AuthorizeOptions struct {
	// RequestID is an idempotency key: with one, a call whose answer was lost is sent again.
	RequestID string
	// Fields are further ones of the request, as docs/openapi.yaml has them; a context among them takes the place of the label at hand.
	Fields JSON
}

// Authorize gives a decision, by itself: it gives no leave to run anything, that is what [Protect] is for.
func (c *Client) Authorize(ctx context.Context, action ToolCall, options AuthorizeOptions) (Decision, error) {
	body := JSON{"agent": c.agent, "context": JSON{"source_trust": CurrentTrust(ctx).String()}}
	for name, value := range options.Fields {
		body[name] = value
	}
	if body["request_id"] == "" {
		// An empty one names no call.
		delete(body, "request_id")
	}
	body["tool_call"] = action.asJSON()
	asked := request[Decision]{retry: retryUnchanged, read: readDecision}
	if options.RequestID != "" {
		body["request_id"] = options.RequestID
		asked.retry = retrySafe
	}
	return post(ctx, c, asked, body, "v1", "authorize")
}

// Approval gives one approval; 404 approval_not_found means that it is pending.
func (c *Client) Approval(ctx context.Context, approvalID string) (Approval, error) {
	return get(ctx, c, readApproval, nil, "v1", "approvals", approvalID)
}

// Approvals gives the tenant's approvals, newest first; of one status, or of all where it is empty.
func (c *Client) Approvals(ctx context.Context, status string, page Page) ([]Approval, error) {
	query := page.query()
	if status != "" {
		query.Set("status", status)
	}
	return get(ctx, c, readList(readApproval), query, "v1", "approvals")
}

// Consume consumes an approval: the one moment at which an approved action may run. A lost answer is asked for again; where it fails
// otherwise than with a refusal, it may have been consumed all the same.
func (c *Client) Consume(ctx context.Context, approvalID, actionHash string) (Consumed, error) {
	body := JSON{"claimed_action_hash": actionHash, "request_id": freshRequestID()}
	return post(ctx, c, request[Consumed]{read: readConsumed}, body, "v1", "approvals", approvalID, "consume")
}

// OutcomeStatus says what came of a decision.
type OutcomeStatus string

// The words of an outcome. Ambiguous: it cannot be told whether it took effect.
const (
	OutcomeOK        OutcomeStatus = "ok"
	OutcomeError     OutcomeStatus = "error"
	OutcomeAmbiguous OutcomeStatus = "ambiguous"
)

// Outcome reports what came of a decision. executedHash may be empty, output nil. Every report is a receipt; one that is sent again
// because its answer was lost is the same.
func (c *Client) Outcome(ctx context.Context, decisionID string, status OutcomeStatus, executedHash string, output any) (Outcome, error) {
	body := JSON{"status": string(status), "executed_hash": nil, "request_id": freshRequestID()}
	if executedHash != "" {
		body["executed_hash"] = executedHash
	}
	if output != nil {
		body["output"] = output
	}
	asked := request[Outcome]{expect: []int{http.StatusCreated}, read: readOutcome}
	return post(ctx, c, asked, body, "v1", "decisions", decisionID, "outcome")
}

// Approve approves. actionHash is that of the action that you were shown; it is required once the action was edited. reason may be empty.
func (c *Client) Approve(ctx context.Context, approvalID, actionHash, reason string) (Approval, error) {
	return c.decide(ctx, approvalID, "approve", present(JSON{"action_hash": actionHash, "reason": reason}))
}

// Reject rejects. reason may be empty.
func (c *Client) Reject(ctx context.Context, approvalID, reason string) (Approval, error) {
	return c.decide(ctx, approvalID, "reject", present(JSON{"reason": reason}))
}

// Edit puts another action in the place of the one that was asked for; it must be approved again. reason may be empty.
func (c *Client) Edit(ctx context.Context, approvalID string, action ToolCall, reason string) (Approval, error) {
	return c.decide(ctx, approvalID, "edit", present(JSON{"tool_call": action.asJSON(), "reason": reason}))
}

func (c *Client) decide(ctx context.Context, approvalID, verb string, body JSON) (Approval, error) {
	return post(ctx, c, request[Approval]{retry: retryUnchanged, read: readApproval}, body, "v1", "approvals", approvalID, verb)
}

// present leaves out empty texts and zeros.
func present(members JSON) JSON {
	for name, value := range members {
		if value == "" || value == 0 {
			delete(members, name)
		}
	}
	return members
}

// AgentRegistration is an agent to register. OwnerTeam and TrustCeiling (a label's word) may be empty.
type AgentRegistration struct {
	AgentKey     string
	Name         string
	Environment  string
	RiskTier     string
	OwnerTeam    string
	TrustCeiling string
}

// Register registers an agent, or gets a fresh token for a known one.
func (c *Client) Register(ctx context.Context, agent AgentRegistration) (Registration, error) {
	body := JSON{"agent_key": agent.AgentKey, "name": agent.Name, "environment": agent.Environment, "risk_tier": agent.RiskTier}
	for name, value := range present(JSON{"owner_team": agent.OwnerTeam, "trust_ceiling": agent.TrustCeiling}) {
		body[name] = value
	}
	asked := request[Registration]{expect: []int{http.StatusOK, http.StatusCreated}, read: readRegistration}
	return post(ctx, c, asked, body, "v1", "agents", "register")
}

// PutTool registers a tool with its actions; it replaces an earlier one.
func (c *Client) PutTool(ctx context.Context, tool JSON) (JSON, error) {
	return post(ctx, c, request[JSON]{expect: []int{http.StatusCreated}, read: readObject}, tool, "v1", "tools")
}

// FreezeAgent denies the agent everything, until it is unfrozen or ttlS seconds have passed (0: no end).
func (c *Client) FreezeAgent(ctx context.Context, agentID, reason string, ttlS int) (Containment, error) {
	return c.contain(ctx, present(JSON{"reason": reason, "ttl_s": ttlS}), "v1", "agents", agentID, "freeze")
}

// UnfreezeAgent ends the agent's freezes.
func (c *Client) UnfreezeAgent(ctx context.Context, agentID, reason string) (Containment, error) {
	return c.contain(ctx, JSON{"reason": reason}, "v1", "agents", agentID, "unfreeze")
}

// RevokeAgent denies the agent everything, for good.
func (c *Client) RevokeAgent(ctx context.Context, agentID, reason string) (Containment, error) {
	return c.contain(ctx, JSON{"reason": reason}, "v1", "agents", agentID, "revoke")
}

// QuarantineMCPServer denies every call to an MCP server's tools, until it is restored or ttlS seconds have passed (0: no end).
func (c *Client) QuarantineMCPServer(ctx context.Context, key, reason string, ttlS int) (Containment, error) {
	return c.contain(ctx, present(JSON{"reason": reason, "ttl_s": ttlS}), "v1", "mcp", "servers", key, "quarantine")
}

// RestoreMCPServer ends the server's quarantines.
func (c *Client) RestoreMCPServer(ctx context.Context, key, reason string) (Containment, error) {
	return c.contain(ctx, JSON{"reason": reason}, "v1", "mcp", "servers", key, "restore")
}

func (c *Client) contain(ctx context.Context, body JSON, parts ...string) (Containment, error) {
	return post(ctx, c, request[Containment]{retry: retryUnchanged, read: readContainment}, body, parts...)
}

// Containment gives what is held or revoked now.
func (c *Client) Containment(ctx context.Context, page Page) ([]Containment, error) {
	return get(ctx, c, readList(readContainment), page.query(), "v1", "containment")
}

// Receipts gives receipt bodies, newest first; of one agent or one run where they are named.
func (c *Client) Receipts(ctx context.Context, agentID, runID string, page Page) ([]JSON, error) {
	return c.listed(ctx, page, map[string]string{"agent_id": agentID, "run_id": runID}, "v1", "receipts")
}

// listed gives a list of what is looked at as it is; filters that are empty are none.
func (c *Client) listed(ctx context.Context, page Page, filters map[string]string, parts ...string) ([]JSON, error) {
	query := page.query()
	for name, value := range filters {
		if value != "" {
			query.Set(name, value)
		}
	}
	return get(ctx, c, readList(readObject), query, parts...)
}

// Decisions gives decisions as events, newest first; of one agent or one run where they are named.
func (c *Client) Decisions(ctx context.Context, agentID, runID string, page Page) ([]JSON, error) {
	return c.listed(ctx, page, map[string]string{"agent_id": agentID, "run_id": runID}, "v1", "decisions")
}

// Decision gives one decision.
func (c *Client) Decision(ctx context.Context, decisionID string) (JSON, error) {
	return get(ctx, c, readObject, nil, "v1", "decisions", decisionID)
}

// Events gives events of every kind, newest first; of one kind, agent or run where they are named.
func (c *Client) Events(ctx context.Context, kind, agentID, runID string, page Page) ([]JSON, error) {
	return c.listed(ctx, page, map[string]string{"kind": kind, "agent_id": agentID, "run_id": runID}, "v1", "audit", "events")
}

// Alerts gives alerts, newest first.
func (c *Client) Alerts(ctx context.Context, page Page) ([]JSON, error) {
	return c.listed(ctx, page, nil, "v1", "alerts")
}

// Alert gives one alert.
func (c *Client) Alert(ctx context.Context, alertID string) (JSON, error) {
	return get(ctx, c, readObject, nil, "v1", "alerts", alertID)
}

// Incidents gives incidents, newest first.
func (c *Client) Incidents(ctx context.Context, page Page) ([]JSON, error) {
	return c.listed(ctx, page, nil, "v1", "incidents")
}

// Incident gives one incident.
func (c *Client) Incident(ctx context.Context, incidentID string) (JSON, error) {
	return get(ctx, c, readObject, nil, "v1", "incidents", incidentID)
}

// CloseIncident closes an incident. reason may be empty.
func (c *Client) CloseIncident(ctx context.Context, incidentID, reason string) (JSON, error) {
	asked := request[JSON]{retry: retryUnchanged, read: readObject}
	return post(ctx, c, asked, present(JSON{"reason": reason}), "v1", "incidents", incidentID, "close")
}

// Receipt gives an event with its receipt and proof: what receipts.VerifyEvent takes.
func (c *Client) Receipt(ctx context.Context, receiptID string) (JSON, error) {
	return get(ctx, c, readObject, nil, "v1", "receipts", receiptID)
}

// VerifyReceipt gives the server's own verdict on a receipt.
func (c *Client) VerifyReceipt(ctx context.Context, receiptID string) (ReceiptVerdict, error) {
	return get(ctx, c, readReceiptVerdict, nil, "v1", "receipts", receiptID, "verify")
}

// ExportReceipts writes the tenant's receipts as JSON lines: what receipts.VerifyExport reads. Of a failed export, what came is written.
func (c *Client) ExportReceipts(ctx context.Context, out io.Writer) error {
	if out == nil {
		return misconfigured("an export needs something to write to")
	}
	asked := request[struct{}]{
		method: http.MethodGet, path: "/v1/receipts/export", retry: retryNever, out: out,
		read: func(any) (struct{}, error) { return struct{}{}, nil },
	}
	_, err := exchange(ctx, c, asked, longestTimeout)
	return err
}

// Summary counts incidents, alerts, pending approvals and contained targets.
func (c *Client) Summary(ctx context.Context) (JSON, error) {
	return get(ctx, c, readObject, nil, "v1", "soc", "summary")
}

// Ready gives {ready, checks}, also of a server that is not.
func (c *Client) Ready(ctx context.Context) (JSON, error) {
	asked := request[JSON]{
		method: http.MethodGet, path: "/readyz", expect: []int{http.StatusOK, http.StatusServiceUnavailable}, read: readObject,
	}
	return call(ctx, c, asked)
}
