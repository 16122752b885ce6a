/* rule
id: AEG-3028
name: label-against-source
version: 2
severity: medium
window: 10m
key: [agent_id, resource]
mode: active
requires: any
suppress: 30m
atlas: [AML.T0051.001]        # indirect prompt injection
owasp: [LLM01]                # prompt injection
owner: soc
description: >-
  An agent changed something under a trusted label within five minutes of a signed webhook that says that strangers can
  write there: the label that the agent claims is better than its source deserves (T-B1, T-B4).
false_positives: >-
  A colleague had the agent work on the same issue just after a stranger wrote there.
runbook: docs/runbooks/label-against-source.md
changelog:
  - {version: 1, date: 2026-11-26, note: first version}
  - {version: 2, date: 2026-11-26, note: 'times are compared as texts of one length, whatever the clock says'}
*/
WITH calls AS (
  SELECT ts, event_id, kind = 'authorize_decision' AS acts, agent_id, resource, tool, action, run_id, source_trust, user_id, target,
         lpad(CAST(CAST(ts AS BIGINT) AS VARCHAR), 20, '0') || event_id || coalesce(user_id, '') AS mark
  FROM events
  WHERE resource LIKE '%/%'
    AND ((kind = 'external_event:github_webhook' AND source_trust IN ('untrusted_external', 'malicious_suspected'))
         -- A forged decision is none.
         OR (kind = 'authorize_decision' AND verified AND decision = 'allow' AND mutates_state
             AND source_trust IN ('trusted_internal_signed', 'trusted_internal_unsigned')))
),
looked_back AS (
  SELECT *,
         max(CASE WHEN NOT acts THEN mark END) OVER w AS written,
         max(CASE WHEN acts THEN mark END) OVER own AS last_own
  FROM calls
  WINDOW w AS (PARTITION BY resource ORDER BY ts RANGE BETWEEN INTERVAL '5' MINUTE PRECEDING AND CURRENT ROW),
         own AS (PARTITION BY resource, agent_id ORDER BY ts
                 RANGE BETWEEN INTERVAL '5' MINUTE PRECEDING AND INTERVAL '1 microsecond' PRECEDING)
)
SELECT agent_id, resource, tool, action, run_id, source_trust, user_id, substr(written, 57) AS written_by,
       make_array(substr(written, 21, 36), event_id) AS event_ids
FROM looked_back
WHERE acts AND written IS NOT NULL AND (last_own IS NULL OR last_own < written)
