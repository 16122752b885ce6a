/* rule
id: AEG-3032
name: rate-above-baseline
version: 1
severity: low
window: 2m
key: [agent_id]
mode: log_only
requires: verified
suppress: 1h
atlas: [AML.T0053]            # AI agent tool invocation
owasp: [LLM06, LLM10]         # excessive agency, unbounded consumption
owner: soc
description: >-
  An agent made as many calls within two minutes as in a usual hour of the week before, at least 60, thirty times its
  rate: it is in a loop, or somebody else drives it.
false_positives: >-
  An agent that works in bursts: a batch, a backlog after an outage, a campaign. An agent that was given more to do.
runbook: docs/runbooks/rate-above-baseline.md
changelog:
  - {version: 1, date: 2026-11-26, note: first version}
*/
WITH counted AS (
  SELECT event_id, agent_id, tool, action, run_id, baseline_hourly_uses AS usual, baseline_active_hours AS active_hours,
         count(*) OVER (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '2' MINUTE PRECEDING AND CURRENT ROW) AS calls
  FROM events
  WHERE kind = 'authorize_decision' AND decision IN ('allow', 'require_approval')
)
SELECT agent_id, tool, action, run_id, calls, usual, active_hours, event_id
FROM counted
WHERE calls >= 60
  AND calls >= usual
  AND active_hours >= 12
