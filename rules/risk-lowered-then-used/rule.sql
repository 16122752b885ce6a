/* rule
id: AEG-3041
name: risk-lowered-then-used
version: 1
severity: medium
window: 1m
key: [agent_id, tool, action]
mode: active
requires: verified
suppress: 1h
atlas: [AML.T0053]            # AI agent tool invocation
owasp: [LLM06]                # excessive agency
owner: soc
description: >-
  An action was registered with a lower risk than before, or as one that needs no approval any more, and was used within
  an hour (T-A6): somebody with a registrar's key may have taken away what stood in the way.
false_positives: >-
  An action that was classified too high and is put right while it is in use. An action that is new is none, nor one that
  is registered again as it was.
runbook: docs/runbooks/risk-lowered-then-used.md
changelog:
  - {version: 1, date: 2026-11-27, note: first version}
*/
SELECT agent_id, tool, action, user_id, run_id, resource, target, decision, source_trust,
       registry_action_risk AS risk_now, registry_action_lowered_from AS risk_before,
       registry_action_approval_required AS approval_required_now, registry_action_lowered AS lowered_at,
       registry_action_lowered_event AS lowered_by, event_id
FROM events
WHERE kind = 'authorize_decision'
  AND decision = 'allow'
  AND ts <= registry_action_lowered + INTERVAL '1' HOUR
