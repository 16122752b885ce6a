/* rule
id: AEG-3018
name: nonce-across-edges
version: 1
severity: high
window: 10m
key: [agent_id]
mode: active
requires: verified
suppress: 10m
atlas: [AML.T0091.000]        # application access token
owasp: [LLM06]                # excessive agency
owner: soc
description: >-
  A nonce that an agent had used at one edge was used at another within ten minutes, for another call or again for a
  change (T-A3). An edge knows only its own nonces, so neither could refuse it.
false_positives: >-
  A client that sends a change again, nonce included, because the first edge did not answer. An approval is still
  consumed only once; without one the change may have run twice.
runbook: docs/runbooks/nonce-across-edges.md
changelog:
  - {version: 1, date: 2026-11-26, note: first version}
*/
WITH uses AS (
  SELECT ts, event_id, agent_id, edge_id, nonce_hash, action_hash, tool, action, resource, mutates_state, decision, token_id,
         min(edge_id || event_id) OVER w AS low_use,
         max(edge_id || event_id) OVER w AS high_use,
         min(action_hash) OVER w <> max(action_hash) OVER w AS other_call
  FROM events
  WHERE kind IN ('authorize_decision', 'replay_attempt') AND nonce_hash IS NOT NULL
  WINDOW w AS (PARTITION BY agent_id, nonce_hash ORDER BY ts RANGE BETWEEN INTERVAL '10' MINUTE PRECEDING AND CURRENT ROW)
),
compared AS (
  SELECT *,
         CASE WHEN left(low_use, -36) <> edge_id THEN low_use
              WHEN left(high_use, -36) <> edge_id THEN high_use END AS other_use
  FROM uses
)
SELECT agent_id, nonce_hash, edge_id, left(other_use, -36) AS other_edge_id, other_call, tool, action, resource, decision, token_id,
       make_array(right(other_use, 36), event_id) AS event_ids
FROM compared
WHERE other_use IS NOT NULL AND (other_call OR mutates_state)
