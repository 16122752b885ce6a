/* rule
id: AEG-3003
name: read-sensitive-then-exfil
version: 1
severity: critical
window: 5m
key: [agent_id]
mode: active
requires: verified
suppress: 10m
respond: [freeze_agent]
atlas: [AML.T0024, AML.T0025] # exfiltration
owasp: [LLM02, LLM06]         # sensitive information disclosure, excessive agency
owner: soc
description: >-
  An agent read sensitive data, and within five minutes made a call that sends data outside, which was not denied (T-B2).
false_positives: >-
  A reporting agent whose task is to send what it reads. Register its destination as internal, or narrow its tools.
runbook: docs/runbooks/read-sensitive-then-exfil.md
changelog:
  - {version: 1, date: 2026-11-22, note: first version}
*/
WITH calls AS (
  SELECT ts, event_id, agent_id, tool, action, target,
         data_access = 'sensitive' AND NOT mutates_state AS reads,
         destination = 'external' AND mutates_state AS sends
  FROM events
  WHERE kind = 'authorize_decision'
    AND decision IN ('allow', 'require_approval')
    AND ((data_access = 'sensitive' AND NOT mutates_state) OR (destination = 'external' AND mutates_state))
)
SELECT agent_id, tool, action, target, sends,
       -- The reads before, and this call, which is in its own frame; other sends in between are matches of their own.
       array_agg(CASE WHEN reads THEN event_id END) OVER w AS read_ids,
       count(CASE WHEN reads THEN 1 END) OVER w AS read_count,
       array_agg(event_id) OVER w AS event_ids
FROM calls
WINDOW w AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '5' MINUTE PRECEDING AND CURRENT ROW)
QUALIFY sends AND read_count > 0
