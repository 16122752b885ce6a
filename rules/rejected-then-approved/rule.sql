/* rule
id: AEG-3011
name: rejected-then-approved
version: 1
severity: medium
window: 1h
key: [agent_id]
mode: active
requires: verified
suppress: 1h
atlas: [AML.T0053]            # AI agent tool invocation
owasp: [LLM06]                # excessive agency
owner: soc
description: >-
  Exactly the action that one person had rejected was approved by another person within the hour: the agent asked until
  it found somebody who said yes.
false_positives: >-
  The first person rejected by mistake, or asked a colleague to decide.
runbook: docs/runbooks/rejected-then-approved.md
changelog:
  - {version: 1, date: 2026-11-26, note: first version}
*/
SELECT agent_id, approval_id, tool, action, resource, action_hash, approver AS approved_by,
       min(CASE WHEN status = 'REJECTED' THEN approver END) OVER w AS rejected_by,
       max(CASE WHEN status = 'REJECTED' THEN approver END) OVER w AS also_rejected_by,
       make_array(max(CASE WHEN status = 'REJECTED' THEN event_id END) OVER w, event_id) AS event_ids
FROM events
WHERE kind = 'approval_decided' AND status IN ('APPROVED', 'REJECTED')
WINDOW w AS (PARTITION BY agent_id, action_hash ORDER BY ts RANGE BETWEEN INTERVAL '1' HOUR PRECEDING AND CURRENT ROW)
QUALIFY status = 'APPROVED' AND (rejected_by <> approver OR also_rejected_by <> approver)
