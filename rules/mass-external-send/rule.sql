/* rule
id: AEG-3026
name: mass-external-send
version: 1
severity: high
window: 30m
key: [agent_id]
mode: log_only
requires: verified
suppress: 1h
respond: [freeze_agent]
atlas: [AML.T0086]            # exfiltration via AI agent tool invocation
owasp: [LLM02, LLM06]         # sensitive information disclosure, excessive agency
owner: soc
description: >-
  An agent was allowed to send to five different outside targets within ten minutes: a leak that is spread, or an agent
  that was made to write to everybody it knows.
false_positives: >-
  An agent whose task is to write to many people, e.g. to answer customers.
runbook: docs/runbooks/mass-external-send.md
changelog:
  - {version: 1, date: 2026-11-26, note: first version}
*/
WITH sends AS (
  SELECT ts, event_id, agent_id, lower(target) AS recipient
  FROM events
  WHERE kind = 'authorize_decision' AND decision = 'allow' AND mutates_state AND destination = 'external' AND target IS NOT NULL
),
counted AS (
  SELECT *,
         count(DISTINCT recipient) OVER w AS targets,
         count(DISTINCT recipient) OVER earlier AS targets_before,
         count(*) OVER same AS seen_before
  FROM sends
  WINDOW w AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '10' MINUTE PRECEDING AND CURRENT ROW),
         earlier AS (PARTITION BY agent_id ORDER BY ts
                     RANGE BETWEEN INTERVAL '10' MINUTE PRECEDING AND INTERVAL '1 microsecond' PRECEDING),
         same AS (PARTITION BY agent_id, recipient ORDER BY ts
                  RANGE BETWEEN INTERVAL '10' MINUTE PRECEDING AND INTERVAL '1 microsecond' PRECEDING)
),
listed AS (
  SELECT agent_id, targets,
         array_agg(event_id) OVER (PARTITION BY agent_id ORDER BY ts
                                   RANGE BETWEEN INTERVAL '10' MINUTE PRECEDING AND CURRENT ROW) AS event_ids
  FROM counted
  WHERE seen_before = 0 AND targets_before < 5
)
SELECT * FROM listed WHERE targets >= 5
