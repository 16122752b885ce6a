/* rule
id: AEG-3023
name: executed-unauthorized
version: 1
severity: critical
window: 1m
key: [agent_id]
mode: active
requires: verified
suppress: 10m
atlas: [AML.T0053, AML.T0048] # AI agent tool invocation, external harms
owasp: [LLM06]                # excessive agency
owner: soc
description: >-
  An agent reported that it executed an action which was denied, or which waited for an approval that it never consumed
  (T-E1). The action ran without authorization.
false_positives: >-
  A client that reports `ok` for a call it did not make.
runbook: docs/runbooks/executed-unauthorized.md
changelog:
  - {version: 1, date: 2026-11-26, note: first version}
*/
SELECT agent_id, event_id, ref_event_id, reason, tool, action, resource, target, run_id, approval_id, action_hash, status
FROM events
WHERE kind = 'tamper_attempt' AND reason IN ('executed_despite_deny', 'executed_without_approval')
