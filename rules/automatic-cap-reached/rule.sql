/* rule
id: AEG-3025
name: automatic-cap-reached
version: 1
severity: high
window: 1m
key: [tenant_id]
mode: active
requires: verified
suppress: 1h
atlas: [AML.T0029]            # denial of AI service
owasp: [LLM06]                # excessive agency
owner: soc
description: >-
  A rule asked for containment and the tenant's hourly cap of automatic containment had been reached: nothing was
  contained, and people decide now. Either much is wrong at once, or somebody makes honest agents look guilty (T-D4).
false_positives: >-
  A cap of 0, which means that rules contain nothing in this tenant.
runbook: docs/runbooks/automatic-cap-reached.md
changelog:
  - {version: 1, date: 2026-11-26, note: first version}
*/
SELECT tenant_id, event_id, ref_event_id, agent_id, tool, approver AS asked_by, reason
FROM events
WHERE kind = 'containment_applied' AND status = 'cap_reached'
