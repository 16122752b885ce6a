/* rule
id: AEG-3017
name: agent-in-two-environments
version: 1
severity: medium
window: 2m
key: [agent_id]
mode: active
requires: verified
suppress: 1h
atlas: [AML.T0091.000]        # application access token
owasp: [LLM06]                # excessive agency
owner: soc
description: >-
  One agent called from one environment, then from another, then from the first again, within a minute. Its tokens
  are used in two places: one of them was copied or stolen, or an old one is still in use.
false_positives: >-
  An agent that was moved to another environment and whose old copy still runs until its token ends (a day). One move
  alone does not match.
runbook: docs/runbooks/agent-in-two-environments.md
changelog:
  - {version: 1, date: 2026-11-26, note: first version}
*/
SELECT agent_id, event_id, token_id, edge_id, environment, tool, action,
       max(ts) OVER earlier AS last_call,
       max(ts) OVER earlier_here AS last_call_here
FROM events
WHERE kind = 'authorize_decision' AND environment IS NOT NULL
WINDOW earlier AS (PARTITION BY agent_id ORDER BY ts
                   RANGE BETWEEN INTERVAL '60' SECOND PRECEDING AND INTERVAL '1 microsecond' PRECEDING),
       earlier_here AS (PARTITION BY agent_id, environment ORDER BY ts
                        RANGE BETWEEN INTERVAL '60' SECOND PRECEDING AND INTERVAL '1 microsecond' PRECEDING)
-- It was here before, and somewhere else since.
QUALIFY last_call_here < last_call
