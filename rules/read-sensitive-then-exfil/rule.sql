/* rule
id: AEG-3003
name: read-sensitive-then-exfil
version: 3
severity: critical
window: 10m
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
  - {version: 2, date: 2026-11-26, note: 'lists the first 20 reads and the last, so that many cost no more'}
  - {version: 3, date: 2026-11-26, note: 'times are compared as texts of one length, whatever the clock says'}
*/
WITH calls AS (
  SELECT ts, event_id, agent_id, tool, action, target,
         data_access = 'sensitive' AND NOT mutates_state AS reads,
         destination = 'external' AND mutates_state AS sends
  FROM events
  WHERE kind = 'authorize_decision'
    AND decision IN ('allow', 'require_approval')
    AND ((data_access = 'sensitive' AND NOT mutates_state) OR (destination = 'external' AND mutates_state))
),
counted AS (
  SELECT *,
         count(CASE WHEN reads THEN 1 END) OVER w AS read_count,
         count(CASE WHEN reads THEN 1 END) OVER earlier AS reads_before,
         -- A text that sorts by time, in 20 digits, with the event's id at its end.
         right(max(CASE WHEN reads THEN lpad(CAST(CAST(ts AS BIGINT) AS VARCHAR), 20, '0') || event_id END) OVER w, 36) AS last_read
  FROM calls
  WINDOW w AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '5' MINUTE PRECEDING AND CURRENT ROW),
         earlier AS (PARTITION BY agent_id ORDER BY ts
                     RANGE BETWEEN INTERVAL '5' MINUTE PRECEDING AND INTERVAL '1 microsecond' PRECEDING)
)
SELECT agent_id, tool, action, target, sends, read_count,
       array_append(array_append(array_agg(event_id) FILTER (WHERE reads) OVER w, last_read), event_id) AS event_ids,
       count(*) OVER w AS kept
FROM counted
-- Only so many reads are listed: an agent that reads all day must not make long lists.
WHERE sends OR reads_before < 20
WINDOW w AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '5' MINUTE PRECEDING AND CURRENT ROW)
QUALIFY sends AND read_count > 0 AND kept > 0
