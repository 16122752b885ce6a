/* rule
id: AEG-3021
name: slow-probing
version: 2
severity: medium
window: 24h
key: [agent_id]
mode: active
requires: verified
suppress: 8h
atlas: [AML.T0084.001, AML.T0053] # discover tool definitions, AI agent tool invocation
owasp: [LLM06]                # excessive agency
owner: soc
description: >-
  Within eight hours an agent was denied eight different things (tool, action and repository or other container). Too
  slow for deny-storm, and too many for a mistake: something finds out what it may do (T-D3).
false_positives: >-
  An agent that answers strangers in many repositories and is allowed to write to none of them.
runbook: docs/runbooks/slow-probing.md
changelog:
  - {version: 1, date: 2026-11-26, note: first version}
  - {version: 2, date: 2026-11-27, note: active}
*/
WITH denied AS (
  SELECT ts, event_id, agent_id,
         tool || '/' || action || ' ' || coalesce(lower(split_part(resource, '#', 1)), '') AS thing
  FROM events
  WHERE kind = 'authorize_decision'
    AND decision = 'deny'
    AND coalesce(reason, '') NOT IN ('agent_frozen', 'agent_quarantined', 'agent_revoked', 'control_stale')
),
counted AS (
  SELECT *,
         count(DISTINCT thing) OVER w AS things,
         count(DISTINCT thing) OVER earlier AS things_before,
         count(*) OVER same AS seen_before
  FROM denied
  WINDOW w AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '8' HOUR PRECEDING AND CURRENT ROW),
         earlier AS (PARTITION BY agent_id ORDER BY ts
                     RANGE BETWEEN INTERVAL '8' HOUR PRECEDING AND INTERVAL '1 microsecond' PRECEDING),
         same AS (PARTITION BY agent_id, thing ORDER BY ts
                  RANGE BETWEEN INTERVAL '8' HOUR PRECEDING AND INTERVAL '1 microsecond' PRECEDING)
),
listed AS (
  SELECT agent_id, things, thing AS last_thing,
         array_agg(event_id) OVER (PARTITION BY agent_id ORDER BY ts
                                   RANGE BETWEEN INTERVAL '8' HOUR PRECEDING AND CURRENT ROW) AS event_ids
  FROM counted
  -- Each thing once, up to the one that crosses the line.
  WHERE seen_before = 0 AND things_before < 8
)
SELECT * FROM listed WHERE things >= 8
