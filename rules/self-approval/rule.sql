/* rule
id: AEG-3013
name: self-approval
version: 2
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
  Somebody tried to decide an action of an agent that they had registered or given a token (T-A7). It was refused.
false_positives: >-
  A person who registered an agent and also holds the approver group, and forgot. Once is a mistake; look at what was to
  be approved.
runbook: docs/runbooks/self-approval.md
changelog:
  - {version: 1, date: 2026-11-26, note: first version}
  - {version: 2, date: 2026-11-27, note: an agent that names an approver as its user does not accuse them}
*/
-- `agent_id` is left out of such an event: the attempt is the approver's and must not count against the agent. What an agent merely claims of its
-- user is `self_approval_claimed`, and accuses nobody.
SELECT approver, event_id, ref_event_id, approval_id, tool, action, resource, user_id, action_hash
FROM events
WHERE kind = 'tamper_attempt' AND reason = 'self_approval'
