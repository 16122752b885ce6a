/* rule
id: AEG-3020
name: freeze-evasion
version: 1
severity: high
window: 30m
key: [agent_id, tool, action]
mode: active
requires: verified
suppress: 30m
atlas: [AML.T0053, AML.T0012] # AI agent tool invocation, valid accounts
owasp: [LLM06]                # excessive agency
owner: soc
description: >-
  What a frozen, quarantined or revoked agent was denied was done by another agent within ten minutes, argument for
  argument. What was stopped goes on under another name.
false_positives: >-
  Two agents that do the same changes all along, of which one is frozen; a person who takes the work over to another
  agent on purpose.
runbook: docs/runbooks/freeze-evasion.md
changelog:
  - {version: 1, date: 2026-11-26, note: first version}
*/
WITH calls AS (
  SELECT ts, event_id, agent_id, tool, action, resource, run_id, user_id, action_hash, decision,
         decision = 'deny' AS contained
  FROM events
  WHERE kind = 'authorize_decision'
    AND ((decision IN ('allow', 'require_approval') AND mutates_state)
         OR (decision = 'deny' AND reason IN ('agent_frozen', 'agent_quarantined', 'agent_revoked')))
),
near AS (
  -- Only what follows such a deny is looked at more closely: where nobody is contained, this is all the work there is.
  SELECT *,
         count(CASE WHEN contained THEN 1 END) OVER (PARTITION BY tool, action ORDER BY ts
           RANGE BETWEEN INTERVAL '10' MINUTE PRECEDING AND CURRENT ROW) AS denies
  FROM calls
),
looked_back AS (
  SELECT *,
         max(CASE WHEN contained THEN mark END) OVER w AS last_contained,
         max(CASE WHEN NOT contained THEN mark END) OVER own AS last_own
  FROM (
    -- The mark sorts by time; then comes the event's id (36), then the agent's.
    SELECT *, CAST(CAST(ts AS BIGINT) AS VARCHAR) || event_id || agent_id AS mark FROM near WHERE denies > 0
  )
  WINDOW w AS (PARTITION BY tool, action, action_hash ORDER BY ts RANGE BETWEEN INTERVAL '10' MINUTE PRECEDING AND CURRENT ROW),
         own AS (PARTITION BY tool, action, action_hash, agent_id ORDER BY ts
                 RANGE BETWEEN INTERVAL '10' MINUTE PRECEDING AND INTERVAL '1 microsecond' PRECEDING)
)
SELECT agent_id, tool, action, resource, run_id, user_id, action_hash, decision,
       substr(last_contained, 53) AS contained_agent_id,
       make_array(substr(last_contained, 17, 36), event_id) AS event_ids
FROM looked_back
WHERE NOT contained
  AND substr(last_contained, 53) <> agent_id
  -- Once for each agent since then.
  AND (last_own IS NULL OR last_own < last_contained)
