/* rule
id: AEG-3008
name: runaway
version: 1
severity: high
window: 20s
key: [agent_id]
mode: log_only
requires: verified
suppress: 10m
respond: [freeze_agent]
atlas: [AML.T0053, AML.T0048] # AI agent tool invocation, external harms
owasp: [LLM06, LLM10]         # excessive agency, unbounded consumption
owner: soc
description: >-
  An agent was allowed 20 changes within 10 seconds. Nobody is looking at what it does at that speed: a loop, or an
  injected instruction to do something to everything.
false_positives: >-
  An import or a clean-up whose task is many small changes. Give it an agent of its own, and a batch action.
runbook: docs/runbooks/runaway.md
changelog:
  - {version: 1, date: 2026-11-26, note: first version}
*/
WITH counted AS (
  SELECT ts, event_id, agent_id,
         count(*) OVER (PARTITION BY agent_id ORDER BY ts
                        RANGE BETWEEN INTERVAL '10' SECOND PRECEDING AND INTERVAL '1 microsecond' PRECEDING) AS before
  FROM events
  WHERE kind = 'authorize_decision' AND decision = 'allow' AND mutates_state
)
SELECT agent_id,
       count(*) OVER w AS actions,
       array_agg(event_id) OVER w AS event_ids
FROM counted
-- Only up to the one that crosses the line: what follows in the same burst is no news, and would make long lists.
WHERE before < 20
WINDOW w AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '10' SECOND PRECEDING AND CURRENT ROW)
QUALIFY actions >= 20
