/* rule
id: AEG-3015
name: run-rotation
version: 2
severity: high
window: 4m
key: [agent_id]
mode: active
requires: verified
suppress: 30m
atlas: [AML.T0051.001, AML.T0053] # indirect prompt injection, AI agent tool invocation
owasp: [LLM01, LLM06]         # prompt injection, excessive agency
owner: soc
description: >-
  An agent was denied a call because of its run's label, and within two minutes sent the very same call, argument for
  argument, under a better label: it took another run to be rid of what the first one had read (T-B4).
false_positives: >-
  A stranger and a colleague asked for the same thing within two minutes, and the agent keeps their runs apart, as it
  should.
runbook: docs/runbooks/run-rotation.md
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
    AND (decision IN ('allow', 'require_approval')
         OR (decision = 'deny' AND source_trust IN ('unknown', 'untrusted_external', 'malicious_suspected')
             AND coalesce(reason, '') NOT IN ('agent_frozen', 'agent_quarantined', 'agent_revoked', 'control_stale')))
),
near AS (
  -- Only what follows a deny is looked at more closely: where nothing is denied, this is all the work there is.
  SELECT *,
         count(CASE WHEN decision = 'deny' THEN 1 END) OVER (PARTITION BY agent_id ORDER BY ts
           RANGE BETWEEN INTERVAL '2' MINUTE PRECEDING AND CURRENT ROW) AS denies
  FROM calls
)
SELECT agent_id, tool, action, resource, run_id, source_trust, decision, action_hash,
       max(CASE WHEN decision = 'deny' THEN run_id END) OVER w AS denied_run,
       max(CASE WHEN decision = 'deny' THEN strictness END) OVER w AS denied_strictness,
       max(CASE WHEN decision = 'deny' THEN mark END) OVER w AS last_deny,
       max(CASE WHEN decision <> 'deny' THEN mark END) OVER earlier AS last_passed,
       make_array(right(max(CASE WHEN decision = 'deny' THEN mark END) OVER w, 36), event_id) AS event_ids
FROM (
  -- The mark sorts by time, in 20 digits; the event's id stands at its end.
  SELECT *, lpad(CAST(CAST(ts AS BIGINT) AS VARCHAR), 20, '0') || event_id AS mark FROM near WHERE denies > 0
)
WINDOW w AS (PARTITION BY agent_id, action_hash ORDER BY ts RANGE BETWEEN INTERVAL '2' MINUTE PRECEDING AND CURRENT ROW),
       earlier AS (PARTITION BY agent_id, action_hash ORDER BY ts
                   RANGE BETWEEN INTERVAL '2' MINUTE PRECEDING AND INTERVAL '1 microsecond' PRECEDING)
QUALIFY decision <> 'deny' AND denied_strictness > strictness AND (last_passed IS NULL OR last_passed < last_deny)
