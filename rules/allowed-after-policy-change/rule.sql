/* rule
id: AEG-3019
name: allowed-after-policy-change
version: 4
severity: medium
window: 20m
key: [agent_id]
mode: active
requires: verified
suppress: 1h
atlas: [AML.T0081]            # modify AI agent configuration
owasp: [LLM06]                # excessive agency
owner: soc
description: >-
  What an agent was denied, or what was held for approval, was allowed to it within ten minutes, under the same label, and
  the policies, or what the registry says of an action, had changed in between (T-A6). Somebody widened what it may do just
  after it was refused, or had it need nobody's approval any more.
false_positives: >-
  A policy or a registration that was too strict and was mended. That is what most of these are; somebody should know of each.
  A tool that was registered for the first time, or anew, between a deny and an allow that have nothing to do with it. A
  call that is held for what it asks for (an amount), and another of the same action that is not, around such a change.
runbook: docs/runbooks/allowed-after-policy-change.md
changelog:
  - {version: 1, date: 2026-11-26, note: first version}
  - {version: 2, date: 2026-11-26, note: 'times are compared as texts of one length, whatever the clock says'}
  - {version: 3, date: 2026-11-27, note: 'the digest names risk, approval and default decision of registered actions too'}
  - {version: 4, date: 2026-11-27, note: 'what was held for approval counts as what was denied does'}
*/
WITH calls AS (
  SELECT ts, event_id, agent_id, tool, action, resource, source_trust, decision, policy_digest
  FROM events
  WHERE kind = 'authorize_decision'
    AND policy_digest IS NOT NULL
    AND (mutates_state OR data_access = 'sensitive')
    AND (decision IN ('allow', 'require_approval')
         OR (decision = 'deny'
             AND coalesce(reason, '') NOT IN ('agent_frozen', 'agent_quarantined', 'agent_revoked', 'control_stale',
                                              'unknown_action', 'mcp_server_quarantined', 'mcp_manifest_drift')))
),
near AS (
  -- Only what follows a refusal is looked at more closely: where nothing is refused, this is all the work there is.
  SELECT *,
         count(CASE WHEN decision <> 'allow' THEN 1 END) OVER (PARTITION BY agent_id, tool, action, source_trust ORDER BY ts
           RANGE BETWEEN INTERVAL '10' MINUTE PRECEDING AND CURRENT ROW) AS refusals
  FROM calls
),
looked_back AS (
  SELECT *,
         max(CASE WHEN decision = 'deny' THEN mark END) OVER w AS last_deny,
         max(CASE WHEN decision = 'require_approval' THEN mark END) OVER w AS last_hold,
         max(CASE WHEN decision = 'allow' THEN mark END) OVER earlier AS last_allow
  FROM (
    -- The mark sorts by time, in 20 digits; then comes the event's id (36), then what decided.
    SELECT *, lpad(CAST(CAST(ts AS BIGINT) AS VARCHAR), 20, '0') || event_id || policy_digest AS mark FROM near WHERE refusals > 0
  )
  WINDOW w AS (PARTITION BY agent_id, tool, action, source_trust ORDER BY ts
               RANGE BETWEEN INTERVAL '10' MINUTE PRECEDING AND CURRENT ROW),
         earlier AS (PARTITION BY agent_id, tool, action, source_trust ORDER BY ts
                     RANGE BETWEEN INTERVAL '10' MINUTE PRECEDING AND INTERVAL '1 microsecond' PRECEDING)
),
allowed AS (
  -- The last deny is told before the last hold: what was denied first, then held, and is allowed now went all the way.
  SELECT *,
         CASE WHEN substr(last_deny, 57) <> policy_digest AND (last_allow IS NULL OR last_allow < last_deny) THEN last_deny
              WHEN substr(last_hold, 57) <> policy_digest AND (last_allow IS NULL OR last_allow < last_hold) THEN last_hold
         END AS refusal
  FROM looked_back
  WHERE decision = 'allow'
)
SELECT agent_id, tool, action, resource, source_trust,
       CASE WHEN refusal = last_deny THEN 'deny' ELSE 'require_approval' END AS refused,
       substr(refusal, 57) AS refused_under, policy_digest AS allowed_under,
       make_array(substr(refusal, 21, 36), event_id) AS event_ids
FROM allowed
WHERE refusal IS NOT NULL
