/* rule
id: AEG-3002
name: deny-storm
version: 1
severity: high
window: 60s
key: [agent_id]
mode: active
requires: verified
suppress: 10m
respond: [freeze_agent]
atlas: [AML.T0053]            # LLM plugin compromise: an agent probing its tools
owasp: [LLM06]                # excessive agency
owner: soc
description: >-
  Five calls of one agent were denied within 60 seconds. Something is probing what the agent may do.
false_positives: >-
  An agent after a policy change that retries without a pause. Its calls have the same action_hash.
runbook: docs/runbooks/deny-storm.md
changelog:
  - {version: 1, date: 2026-11-22, note: first version}
*/
SELECT agent_id,
       count(*) OVER w AS denies,
       array_agg(event_id) OVER w AS event_ids
FROM events
WHERE kind = 'authorize_decision' AND decision = 'deny'
WINDOW w AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '60' SECOND PRECEDING AND CURRENT ROW)
QUALIFY denies >= 5
