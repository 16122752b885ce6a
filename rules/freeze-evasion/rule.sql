/* rule
id: AEG-3020
name: freeze-evasion
version: 2
severity: high
window: 10m
key: [agent_id, tool, action, action_hash]
mode: active
requires: verified
suppress: 30m
atlas: [AML.T0053, AML.T0012] # AI agent tool invocation, valid accounts
owasp: [LLM06]                # excessive agency
owner: soc
description: >-
  What a frozen, quarantined or revoked agent was denied was done by another agent within five minutes, argument for
  argument, and not before. What was stopped goes on under another name.
false_positives: >-
  Two agents with the same task, of which one is frozen; a person who takes the work over to another agent on purpose.
runbook: docs/runbooks/freeze-evasion.md
changelog:
  - {version: 1, date: 2026-11-26, note: first version}
  - {version: 2, date: 2026-11-26, note: 'times are compared as texts of one length, whatever the clock says'}
*/
-- By action_hash, so that a call is held against its like only, however many others there are.
WITH calls AS (
  SELECT ts, event_id, agent_id, tool, action, resource, run_id, user_id, action_hash, decision,
         decision = 'deny' AS contained,
         -- Sorts by time, in 20 digits; then comes the event's id (36), then the agent's.
         lpad(CAST(CAST(ts AS BIGINT) AS VARCHAR), 20, '0') || event_id || agent_id AS mark
  FROM events
  WHERE kind = 'authorize_decision'
    AND ((decision IN ('allow', 'require_approval') AND mutates_state)
         OR (decision = 'deny' AND reason IN ('agent_frozen', 'agent_quarantined', 'agent_revoked')))
),
looked_back AS (
  SELECT *,
         max(CASE WHEN contained THEN mark END) OVER w AS last_contained,
         max(CASE WHEN NOT contained THEN mark END) OVER own AS last_own
  FROM calls
  WINDOW w AS (PARTITION BY tool, action, action_hash ORDER BY ts RANGE BETWEEN INTERVAL '5' MINUTE PRECEDING AND CURRENT ROW),
         own AS (PARTITION BY tool, action, action_hash, agent_id ORDER BY ts
                 RANGE BETWEEN INTERVAL '5' MINUTE PRECEDING AND INTERVAL '1 microsecond' PRECEDING)
)
SELECT agent_id, tool, action, resource, run_id, user_id, action_hash, decision,
       substr(last_contained, 57) AS contained_agent_id,
       make_array(substr(last_contained, 21, 36), event_id) AS event_ids
FROM looked_back
WHERE NOT contained
  AND substr(last_contained, 57) <> agent_id
  -- What it did all along it does not take over; and once is enough.
  AND last_own IS NULL
