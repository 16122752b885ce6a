/* rule
id: AEG-3029
name: altered-request
version: 1
severity: critical
window: 1m
key: [approval_id]
mode: active
requires: verified
suppress: 1h
atlas: [AML.T0048]            # external harms
owasp: [LLM06]                # excessive agency
owner: soc
description: >-
  What came to be shown for approval is not what the edge had sealed: a request for approval was altered or made up on its
  way to control (T-A4, T-D5). It is shown to nobody and cannot be approved.
false_positives: >-
  None is known. An edge and a control plane of very different versions may come first.
runbook: docs/runbooks/altered-request.md
changelog:
  - {version: 1, date: 2026-11-26, note: first version}
*/
-- `agent_id` is left out of such an event: what an altered request says of its agent proves nothing.
SELECT approval_id, event_id, ref_event_id, reason, edge_id
FROM events
WHERE kind = 'tamper_attempt'
  AND reason IN ('frozen_action_mismatch', 'frozen_receipt_mismatch', 'frozen_receipt_unproven')
