/* rule
id: AEG-3005
name: approve-then-swap
version: 2
severity: critical
window: 1m
key: [agent_id]
mode: active
requires: verified
suppress: 10m
atlas: [AML.T0048]            # external harms
owasp: [LLM06]                # excessive agency
owner: soc
description: >-
  An action that a person had approved was swapped for another before it ran (T-A1, T-A2). The attempt failed closed: the
  hash of the claimed action is not the hash of the approved one, and the approval was not used up.
false_positives: >-
  A client that builds the action anew after approval instead of sending the approved one, so that a time stamp or an order
  of fields differs.
runbook: docs/runbooks/approve-then-swap.md
changelog:
  - {version: 1, date: 2026-11-22, note: first version}
  - {version: 2, date: 2026-11-26, note: an execution that was never authorized is told of by executed-unauthorized alone}
*/
SELECT agent_id, event_id, approval_id, tool, action, resource, action_hash, reason
FROM events
WHERE kind = 'tamper_attempt'
  AND coalesce(reason, '') NOT IN ('executed_despite_deny', 'executed_without_approval')
