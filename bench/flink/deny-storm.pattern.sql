-- deny-storm by MATCH_RECOGNIZE: five denies, of which the last comes at most 60 seconds after the first (WITHIN leaves its end out).
SELECT 'deny-storm' AS rule, tenant_id, agent_id, first_event, last_event, evidence
FROM (
  SELECT ts, tenant_id, agent_id, event_id, decision
  FROM events
  WHERE kind = 'authorize_decision'
    AND decision = 'deny'
    AND COALESCE(reason, '') NOT IN ('agent_frozen', 'agent_quarantined', 'agent_revoked')
) MATCH_RECOGNIZE (
  PARTITION BY tenant_id, agent_id
  ORDER BY ts
  MEASURES FIRST(d.event_id) AS first_event, LAST(d.event_id) AS last_event, COUNT(d.event_id) AS evidence
  AFTER MATCH SKIP PAST LAST ROW
  PATTERN (d{5}) WITHIN INTERVAL '60.000001' SECOND
  DEFINE d AS d.decision = 'deny'
)
