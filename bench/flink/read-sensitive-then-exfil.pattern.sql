-- read-sensitive-then-exfil by MATCH_RECOGNIZE: sensitive reads, and at most five minutes after the first of them something is sent outside. Of
-- what is sent after that without another read nothing is told; the shipped rule finds it too, and adds it to the same episode.
SELECT 'read-sensitive-then-exfil' AS rule, tenant_id, agent_id, first_event, last_event, 2 + more_reads AS evidence
FROM (
  SELECT ts, tenant_id, agent_id, event_id, tool, action, target,
         data_access = 'sensitive' AND NOT mutates_state AS is_read,
         destination = 'external' AND mutates_state AS is_sent
  FROM events
  WHERE kind = 'authorize_decision'
    AND decision IN ('allow', 'require_approval')
    AND ((data_access = 'sensitive' AND NOT mutates_state) OR (destination = 'external' AND mutates_state))
) MATCH_RECOGNIZE (
  PARTITION BY tenant_id, agent_id
  ORDER BY ts
  MEASURES r.event_id AS first_event, s.event_id AS last_event, COUNT(m.event_id) AS more_reads,
           s.tool AS tool, s.action AS action, s.target AS target
  AFTER MATCH SKIP PAST LAST ROW
  PATTERN (r m*? s) WITHIN INTERVAL '300.000001' SECOND
  DEFINE r AS r.is_read, m AS m.is_read, s AS s.is_sent
)
