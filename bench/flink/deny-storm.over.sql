-- deny-storm as it is shipped, by OVER. A frame ends at its row in Flink: so the row itself is counted too, and the line is at five instead of
-- before it. That is the same where no two denies of an agent have one time.
WITH counted AS (
  SELECT ts, event_id, tenant_id, agent_id,
         COUNT(*) OVER (PARTITION BY tenant_id, agent_id ORDER BY ts
                        RANGE BETWEEN INTERVAL '60' SECOND PRECEDING AND CURRENT ROW) AS so_far
  FROM events
  WHERE kind = 'authorize_decision'
    AND decision = 'deny'
    AND COALESCE(reason, '') NOT IN ('agent_frozen', 'agent_quarantined', 'agent_revoked')
),
listed AS (
  SELECT ts, tenant_id, agent_id,
         COUNT(*) OVER w AS denies,
         ARRAY_AGG(event_id) OVER w AS event_ids
  FROM counted
  WHERE so_far <= 5
  WINDOW w AS (PARTITION BY tenant_id, agent_id ORDER BY ts RANGE BETWEEN INTERVAL '60' SECOND PRECEDING AND CURRENT ROW)
)
SELECT 'deny-storm' AS rule, tenant_id, agent_id, event_ids[1] AS first_event, event_ids[CARDINALITY(event_ids)] AS last_event, denies AS evidence
FROM listed
WHERE denies >= 5
