/* rule
id: AEG-3009
name: denial-of-wallet
version: 1
severity: medium
window: 1m
key: [agent_id]
mode: log_only
requires: verified
suppress: 1h
atlas: [AML.T0034]            # cost harvesting
owasp: [LLM10]                # unbounded consumption
owner: soc
description: >-
  An agent was allowed 120 calls within a minute, two a second without a pause. Whatever the calls cost, somebody
  pays.
false_positives: >-
  An agent that serves many users at once, or a backfill. Raise the number for a tenant where that is normal.
runbook: docs/runbooks/denial-of-wallet.md
changelog:
  - {version: 1, date: 2026-11-26, note: first version}
*/
SELECT agent_id, event_id, tool, action,
       count(*) OVER earlier AS before,
       count(*) OVER w AS calls
FROM events
WHERE kind = 'authorize_decision' AND decision = 'allow'
WINDOW w AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '60' SECOND PRECEDING AND CURRENT ROW),
       earlier AS (PARTITION BY agent_id ORDER BY ts
                   RANGE BETWEEN INTERVAL '60' SECOND PRECEDING AND INTERVAL '1 microsecond' PRECEDING)
-- The call that crosses the line. It is the evidence: a list of 120 would say no more.
QUALIFY before < 120 AND calls >= 120
