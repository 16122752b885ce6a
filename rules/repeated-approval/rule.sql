/* rule
id: AEG-3010
name: repeated-approval
version: 1
severity: medium
window: 30m
key: [agent_id]
mode: active
requires: verified
suppress: 30m
atlas: [AML.T0053]            # AI agent tool invocation
owasp: [LLM06]                # excessive agency
owner: soc
description: >-
  An agent asked for approval of the same action of a tool five times within 15 minutes, whatever the arguments:
  somebody who is asked often enough says yes.
false_positives: >-
  A release agent that merges several pull requests in a row. Let one approval cover what belongs together.
runbook: docs/runbooks/repeated-approval.md
changelog:
  - {version: 1, date: 2026-11-26, note: first version}
*/
WITH counted AS (
  SELECT ts, event_id, agent_id, tool, action, action_hash,
         count(*) OVER (PARTITION BY agent_id, tool, action ORDER BY ts
                        RANGE BETWEEN INTERVAL '15' MINUTE PRECEDING AND INTERVAL '1 microsecond' PRECEDING) AS before
  FROM events
  WHERE kind = 'approval_requested'
)
SELECT agent_id, tool, action,
       count(*) OVER w AS requests,
       count(DISTINCT action_hash) OVER w AS different_requests,
       array_agg(event_id) OVER w AS event_ids
FROM counted
WHERE before < 5
WINDOW w AS (PARTITION BY agent_id, tool, action ORDER BY ts RANGE BETWEEN INTERVAL '15' MINUTE PRECEDING AND CURRENT ROW)
QUALIFY requests >= 5
