/* rule
id: AEG-3013
name: self-approval
version: 1
severity: high
window: 1m
key: [approver]
mode: active
requires: verified
suppress: 10m
atlas: [AML.T0012]            # valid accounts
owasp: [LLM06]                # excessive agency
owner: soc
description: >-
  Somebody tried to decide an action that they had asked for themselves, or whose agent they had registered (T-A7). It
  was refused.
false_positives: >-
  A person who registered an agent and also holds the approver group, and forgot. Once is a mistake; look at what was to
  be approved.
runbook: docs/runbooks/self-approval.md
changelog:
  - {version: 1, date: 2026-11-26, note: first version}
*/
-- `agent_id` is left out of such an event: the attempt is the approver's and must not count against the agent.
SELECT approver, event_id, ref_event_id, approval_id, tool, action, resource, user_id, action_hash
FROM events
WHERE kind = 'tamper_attempt' AND reason = 'self_approval'
