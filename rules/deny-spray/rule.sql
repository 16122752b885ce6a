/* rule
id: AEG-3022
name: deny-spray
version: 1
severity: medium
window: 30m
key: [tool, action]
mode: active
requires: verified
suppress: 1h
atlas: [AML.T0053]            # AI agent tool invocation
owasp: [LLM06]                # excessive agency
owner: soc
description: >-
  The same action of a tool was denied to five different agents within ten minutes: somebody tries the same through many
  agents, so that none of them stands out (T-D3), or something that all of them need is broken.
false_positives: >-
  A new policy, or an action that was renamed: then all agents that use it are denied at once, and the first deny comes
  right after a change of the configuration.
runbook: docs/runbooks/deny-spray.md
changelog:
  - {version: 1, date: 2026-11-26, note: first version}
*/
WITH counted AS (
  SELECT ts, event_id, tool, action, agent_id,
         count(DISTINCT agent_id) OVER w AS agents,
         count(DISTINCT agent_id) OVER earlier AS agents_before,
         count(*) OVER same AS seen_before
  FROM events
  WHERE kind = 'authorize_decision'
    AND decision = 'deny'
    AND agent_id IS NOT NULL
    AND coalesce(reason, '') NOT IN ('agent_frozen', 'agent_quarantined', 'agent_revoked', 'control_stale')
  WINDOW w AS (PARTITION BY tool, action ORDER BY ts RANGE BETWEEN INTERVAL '10' MINUTE PRECEDING AND CURRENT ROW),
         earlier AS (PARTITION BY tool, action ORDER BY ts
                     RANGE BETWEEN INTERVAL '10' MINUTE PRECEDING AND INTERVAL '1 microsecond' PRECEDING),
         same AS (PARTITION BY tool, action, agent_id ORDER BY ts
                  RANGE BETWEEN INTERVAL '10' MINUTE PRECEDING AND INTERVAL '1 microsecond' PRECEDING)
),
listed AS (
  SELECT tool, action, agents,
         array_agg(event_id) OVER (PARTITION BY tool, action ORDER BY ts
                                   RANGE BETWEEN INTERVAL '10' MINUTE PRECEDING AND CURRENT ROW) AS event_ids
  FROM counted
  WHERE seen_before = 0 AND agents_before < 5
)
SELECT * FROM listed WHERE agents >= 5
