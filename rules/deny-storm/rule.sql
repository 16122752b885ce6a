/* rule
id: AEG-3002
name: deny-storm
version: 2
severity: high
window: 2m
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
  - {version: 2, date: 2026-11-26, note: 'counts no denies of a contained agent, and costs no more when there are many'}
*/
WITH counted AS (
  SELECT ts, event_id, agent_id,
         count(*) OVER (PARTITION BY agent_id ORDER BY ts
                        RANGE BETWEEN INTERVAL '60' SECOND PRECEDING AND INTERVAL '1 microsecond' PRECEDING) AS before
  FROM events
  WHERE kind = 'authorize_decision'
    AND decision = 'deny'
    -- What is denied because the agent is contained proves nothing new, and would hide a storm after its release.
    AND coalesce(reason, '') NOT IN ('agent_frozen', 'agent_quarantined', 'agent_revoked')
)
SELECT agent_id,
       count(*) OVER w AS denies,
       array_agg(event_id) OVER w AS event_ids
FROM counted
-- Only up to the one that crosses the line: an agent that is denied ten thousand times a minute must not make long lists.
WHERE before < 5
WINDOW w AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '60' SECOND PRECEDING AND CURRENT ROW)
QUALIFY denies >= 5
