/* rule
id: AEG-3037
name: denied-until-allowed
version: 1
severity: medium
window: 10m
key: [agent_id, tool]
mode: active
requires: verified
suppress: 30m
atlas: [AML.T0053]            # AI agent tool invocation
owasp: [LLM06]                # excessive agency
owner: soc
description: >-
  One after the other, four or more different calls of a tool were denied to an agent, and the next change or sensitive read that it asked
  of that tool was yet another call, which was allowed, all within ten minutes: something tried until the policies let it through (T-D3).
false_positives: >-
  An agent that is new to a tool and is refused what it asks for in the wrong way until it asks in the right one: a resource that it has no
  part in, an amount above its limit. Its prompt should say what it may do.
runbook: docs/runbooks/denied-until-allowed.md
changelog:
  - {version: 1, date: 2026-11-27, note: first version}
*/
WITH calls AS (
  SELECT ts, lane, seq, event_id, agent_id, tool, action, resource, action_hash, decision = 'deny' AS denied
  FROM events
  WHERE kind = 'authorize_decision'
    AND ((decision = 'deny'
          AND coalesce(reason, '') NOT IN ('agent_frozen', 'agent_quarantined', 'agent_revoked', 'control_stale'))
         OR (decision = 'allow' AND (mutates_state OR data_access = 'sensitive')))
)
SELECT agent_id, tool, action, resource, denied_calls, event_ids
FROM calls MATCH_RECOGNIZE (
  PARTITION BY agent_id, tool
  ORDER BY ts
  MEASURES through.action AS action, through.resource AS resource, through.action_hash AS allowed_hash,
           count(DISTINCT refused.action_hash) AS denied_calls, array_agg(refused.action_hash) AS denied_hashes,
           array_agg(event_id) AS event_ids
  PATTERN (refused{4,} through)
  DEFINE refused AS refused.denied, through AS NOT through.denied
)
-- What was denied and is allowed now was not found by trying: something else has changed.
WHERE denied_calls >= 4 AND NOT array_has(denied_hashes, allowed_hash)
