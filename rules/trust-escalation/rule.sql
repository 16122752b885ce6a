/* rule
id: AEG-3014
name: trust-escalation
version: 2
severity: medium
window: 10m
key: [agent_id]
mode: active
requires: verified
suppress: 30m
atlas: [AML.T0051.001, AML.T0053] # indirect prompt injection, AI agent tool invocation
owasp: [LLM01, LLM06]         # prompt injection, excessive agency
owner: soc
description: >-
  An agent was denied an action because of where its instructions came from, and within five minutes was allowed the same
  action of the same tool under a better label. A run never gets a better label, so another run made the call (T-B4).
false_positives: >-
  An agent that works for strangers and for colleagues at the same time: a stranger asked first, and was refused.
  Compare the two runs.
runbook: docs/runbooks/trust-escalation.md
changelog:
  - {version: 1, date: 2026-11-26, note: first version}
  - {version: 2, date: 2026-11-26, note: 'times are compared as texts of one length, whatever the clock says'}
*/
WITH calls AS (
  SELECT ts, event_id, agent_id, tool, action, resource, run_id, source_trust, decision, action_hash,
         CASE source_trust WHEN 'trusted_internal_signed' THEN 0 WHEN 'trusted_internal_unsigned' THEN 1
                           WHEN 'semi_trusted_customer' THEN 2 WHEN 'unknown' THEN 3
                           WHEN 'untrusted_external' THEN 4 WHEN 'malicious_suspected' THEN 5 END AS strictness
  FROM events
  WHERE kind = 'authorize_decision'
    AND (mutates_state OR data_access = 'sensitive')
    AND (decision = 'allow'
         OR (decision = 'deny' AND source_trust IN ('unknown', 'untrusted_external', 'malicious_suspected')
             AND coalesce(reason, '') NOT IN ('agent_frozen', 'agent_quarantined', 'agent_revoked', 'control_stale')))
),
near AS (
  -- Only what follows a deny is looked at more closely: where nothing is denied, this is all the work there is.
  SELECT *,
         count(CASE WHEN decision = 'deny' THEN 1 END) OVER (PARTITION BY agent_id, tool, action ORDER BY ts
           RANGE BETWEEN INTERVAL '5' MINUTE PRECEDING AND CURRENT ROW) AS denies
  FROM calls
)
SELECT agent_id, tool, action, resource, run_id, source_trust, action_hash,
       max(CASE WHEN decision = 'deny' THEN strictness END) OVER w AS denied_strictness,
       max(CASE WHEN decision = 'deny' THEN mark END) OVER w AS last_deny,
       max(CASE WHEN decision = 'allow' THEN mark END) OVER earlier AS last_allow,
       make_array(right(max(CASE WHEN decision = 'deny' THEN mark END) OVER w, 36), event_id) AS event_ids
FROM (
  -- The mark sorts by time, in 20 digits; the event's id stands at its end.
  SELECT *, lpad(CAST(CAST(ts AS BIGINT) AS VARCHAR), 20, '0') || event_id AS mark FROM near WHERE denies > 0
)
WINDOW w AS (PARTITION BY agent_id, tool, action ORDER BY ts RANGE BETWEEN INTERVAL '5' MINUTE PRECEDING AND CURRENT ROW),
       earlier AS (PARTITION BY agent_id, tool, action ORDER BY ts
                   RANGE BETWEEN INTERVAL '5' MINUTE PRECEDING AND INTERVAL '1 microsecond' PRECEDING)
-- The first allow after the deny; those that follow are no news.
QUALIFY decision = 'allow' AND denied_strictness > strictness AND (last_allow IS NULL OR last_allow < last_deny)
