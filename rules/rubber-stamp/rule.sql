/* rule
id: AEG-3012
name: rubber-stamp
version: 1
severity: medium
window: 2m
key: [approver]
mode: active
requires: verified
suppress: 1h
atlas: [AML.T0012]            # valid accounts
owasp: [LLM06]                # excessive agency
owner: soc
description: >-
  One person approved ten actions within a minute. Nobody reads ten actions in a minute: an approval that is given
  unread proves nothing, and so does one given by a script that holds an approver's key (T-A6).
false_positives: >-
  Somebody works off a queue that they have read before. Ten at a time are still worth a question.
runbook: docs/runbooks/rubber-stamp.md
changelog:
  - {version: 1, date: 2026-11-26, note: first version}
*/
WITH counted AS (
  SELECT ts, event_id, approver, agent_id,
         count(*) OVER (PARTITION BY approver ORDER BY ts
                        RANGE BETWEEN INTERVAL '60' SECOND PRECEDING AND INTERVAL '1 microsecond' PRECEDING) AS before
  FROM events
  WHERE kind = 'approval_decided' AND status = 'APPROVED'
)
SELECT approver,
       count(*) OVER w AS approvals,
       count(DISTINCT agent_id) OVER w AS agents,
       array_agg(event_id) OVER w AS event_ids
FROM counted
WHERE before < 10
WINDOW w AS (PARTITION BY approver ORDER BY ts RANGE BETWEEN INTERVAL '60' SECOND PRECEDING AND CURRENT ROW)
QUALIFY approvals >= 10
