/* rule
id: AEG-3030
name: allowed-without-outcome
version: 1
severity: medium
window: 30m
key: [agent_id]
mode: log_only
requires: verified
suppress: 1h
atlas: [AML.T0053]            # AI agent tool invocation
owasp: [LLM06]                # excessive agency
owner: soc
description: >-
  An agent was allowed an action of high or critical risk and reported no outcome of it within 15 minutes, though it had
  reported that of another one within 14 minutes before. It hides what became of this one, or died in the middle of it.
false_positives: >-
  An action that takes longer than 15 minutes; an agent that was stopped, or lost its connection, while it worked; a client
  that reports some of its outcomes only.
runbook: docs/runbooks/allowed-without-outcome.md
changelog:
  - {version: 1, date: 2026-11-26, note: first version}
*/
WITH calls AS (
  SELECT ts, event_id, agent_id, tool, action, resource, target, run_id, user_id, risk_level, action_hash,
         kind = 'tool_outcome' AS is_outcome,
         coalesce(ref_event_id, event_id) AS decision_id
  FROM events
  WHERE decision = 'allow'
    AND risk_level IN ('high', 'critical')
    AND kind IN ('authorize_decision', 'tool_outcome')
)
SELECT agent_id, tool, action, resource, target, run_id, user_id, risk_level, action_hash, event_id,
       -- An outcome has the time of control's clock, which may be a little behind the edge's.
       count(*) FILTER (WHERE is_outcome) OVER (PARTITION BY agent_id, decision_id ORDER BY ts
         RANGE BETWEEN INTERVAL '1' MINUTE PRECEDING AND INTERVAL '15' MINUTE FOLLOWING) AS outcomes,
       count(*) FILTER (WHERE is_outcome) OVER (PARTITION BY agent_id ORDER BY ts
         RANGE BETWEEN INTERVAL '14' MINUTE PRECEDING AND CURRENT ROW) AS reported
FROM calls
QUALIFY NOT is_outcome AND outcomes = 0 AND reported > 0
