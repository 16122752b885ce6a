/* rule
id: AEG-3042
name: ambiguous-decision
version: 1
severity: high
window: 1m
key: [edges]
mode: active
requires: verified
suppress: 1h
atlas: [AML.T0031]            # erode model integrity: the evidence is tampered with
owasp: [LLM03]                # supply chain
owner: soc
description: >-
  An agent reported what came of a decision, and several producers sealed a decision for it under that id (T-C1 to T-C4). One of
  them is not honest: an edge that is taken over seals under another's ids. The outcome is not recorded.
false_positives: >-
  An edge that was cloned with its data folder, so that two of it answer under one name.
runbook: docs/runbooks/ambiguous-decision.md
changelog:
  - {version: 1, date: 2026-11-28, note: first version}
*/
-- `agent_id` is left out of such an event: the agent reports what it was answered, and is not what is wrong.
SELECT resource AS edges, event_id, ref_event_id, attributes
FROM events
WHERE kind = 'tamper_attempt' AND reason = 'ambiguous_decision'
