/* rule
id: AEG-3017
name: agent-in-two-environments
version: 1
severity: medium
window: 3m
key: [agent_id]
mode: active
requires: verified
suppress: 1h
atlas: [AML.T0091.000]        # application access token
owasp: [LLM06]                # excessive agency
owner: soc
description: >-
  One agent called from two environments in turn, twice from each, within a minute. Its tokens are used in two places: one
  of them was copied or stolen, or an old one is still in use.
false_positives: >-
  An agent that was moved to another environment and whose old copy still runs until its token ends (a day). One move
  alone does not match.
runbook: docs/runbooks/agent-in-two-environments.md
changelog:
  - {version: 1, date: 2026-11-26, note: first version}
*/
WITH near AS (
  -- Only where there are two environments at all is looked at more closely.
  SELECT ts, event_id, agent_id, token_id, edge_id, environment, tool, action,
         min(environment) OVER w AS one_environment,
         max(environment) OVER w AS other_environment
  FROM events
  WHERE kind = 'authorize_decision' AND environment IS NOT NULL
  WINDOW w AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '60' SECOND PRECEDING AND CURRENT ROW)
)
SELECT agent_id, event_id, token_id, edge_id, environment, tool, action, one_environment, other_environment,
       max(ts) OVER earlier AS last_call,
       max(ts) OVER earlier_here AS last_call_here
FROM near
WHERE one_environment <> other_environment
WINDOW earlier AS (PARTITION BY agent_id ORDER BY ts
                   RANGE BETWEEN INTERVAL '60' SECOND PRECEDING AND INTERVAL '1 microsecond' PRECEDING),
       earlier_here AS (PARTITION BY agent_id, environment ORDER BY ts
                        RANGE BETWEEN INTERVAL '60' SECOND PRECEDING AND INTERVAL '1 microsecond' PRECEDING)
-- It was here before, and somewhere else since. (The first call of all is not seen here: there was one environment then.)
QUALIFY last_call_here < last_call
