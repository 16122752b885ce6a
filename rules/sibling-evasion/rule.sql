/* rule
id: AEG-3034
name: sibling-evasion
version: 1
severity: high
window: 30m
key: [agent_id, tool, action, resource]
mode: active
requires: verified
suppress: 30m
atlas: [AML.T0053, AML.T0012] # AI agent tool invocation, valid accounts
owasp: [LLM06]                # excessive agency
owner: soc
description: >-
  An agent tried what another agent of its owner was denied within fifteen minutes before, on the same resource, and that
  other one is frozen, quarantined or revoked by now. It did not do so before. Whoever drives the agents goes on with the next.
false_positives: >-
  Agents of a large team with the same task, of which one is frozen. A team whose agents have no owner of their own, so
  that all of them are siblings.
runbook: docs/runbooks/sibling-evasion.md
changelog:
  - {version: 1, date: 2026-11-27, note: first version}
*/
-- What led to a freeze was denied before it. So denied calls are looked at in the light of who is held by now, and not by what they were denied for.
WITH calls AS (
  SELECT ts, event_id, agent_id, tool, action, resource, run_id, user_id, decision, reason,
         registry_owner_team AS owner_team, registry_frozen_siblings AS frozen_siblings
  FROM events
  WHERE kind = 'authorize_decision'
    AND resource IS NOT NULL
    AND (decision = 'deny' OR mutates_state OR data_access = 'sensitive')
),
looked_back AS (
  SELECT *,
         array_agg(agent_id) FILTER (WHERE decision = 'deny') OVER w AS denied_agents,
         array_agg(event_id) FILTER (WHERE decision = 'deny') OVER w AS denied_events,
         count(*) FILTER (WHERE decision <> 'deny') OVER own AS own_before
  FROM calls
  WINDOW w AS (PARTITION BY tool, action, resource ORDER BY ts RANGE BETWEEN INTERVAL '15' MINUTE PRECEDING AND CURRENT ROW),
         own AS (PARTITION BY tool, action, resource, agent_id ORDER BY ts
                 RANGE BETWEEN INTERVAL '15' MINUTE PRECEDING AND INTERVAL '1 microsecond' PRECEDING)
),
evaded AS (
  SELECT *, array_element(array_intersect(denied_agents, frozen_siblings), 1) AS frozen_agent_id
  FROM looked_back
  -- Where nobody of its owner's is held, nothing is listed.
  WHERE cardinality(frozen_siblings) > 0
    -- What it did all along it does not take over.
    AND own_before = 0
    -- Nor does one that is held itself.
    AND NOT (decision = 'deny' AND reason IN ('agent_frozen', 'agent_quarantined', 'agent_revoked'))
)
SELECT agent_id, tool, action, resource, run_id, user_id, decision, reason, owner_team, frozen_agent_id,
       make_array(array_element(denied_events, CAST(array_position(denied_agents, frozen_agent_id) AS BIGINT)), event_id) AS event_ids
FROM evaded
WHERE frozen_agent_id IS NOT NULL
