/* rule
id: AEG-3035
name: campaign
version: 1
severity: critical
window: 1h
key: [agent_id]
mode: active
requires: any
suppress: 6h
atlas: [AML.T0053, AML.T0051] # AI agent tool invocation, prompt injection
owasp: [LLM01, LLM06]         # prompt injection, excessive agency
owner: soc
description: >-
  Three different rules told of one agent within an hour. Each alone has honest reasons; together they are somebody who
  tries one way after the other.
false_positives: >-
  A red team, or a new agent whose policies are not yet right: one wrong setting may break several rules at once.
runbook: docs/runbooks/campaign.md
changelog:
  - {version: 1, date: 2026-11-27, note: first version}
*/
-- Rules that say the same of one deed in two ways (deny-storm and confused-deputy, freeze-evasion and sibling-evasion) are one of each here.
WITH counted AS (
  SELECT ts, event_id, agent_id, rule_name,
         CASE rule_name WHEN 'confused-deputy' THEN 'denied' WHEN 'deny-storm' THEN 'denied'
                        WHEN 'freeze-evasion' THEN 'evasion' WHEN 'sibling-evasion' THEN 'evasion'
                        ELSE rule_name END AS way
  FROM alerts
  WHERE rule_name IN ('agent-in-two-environments', 'allowed-after-policy-change', 'approve-then-swap', 'confused-deputy', 'cross-repository',
                      'deny-storm', 'executed-unauthorized', 'freeze-evasion', 'label-against-source', 'nonce-across-edges',
                      'read-sensitive-then-exfil', 'repeated-approval', 'replay', 'run-rotation', 'sibling-evasion', 'trust-escalation')
    AND mode = 'active'
    AND agent_id IS NOT NULL
)
SELECT agent_id,
       count(DISTINCT way) OVER w AS ways,
       count(*) OVER w AS told,
       array_agg(rule_name) OVER w AS rules,
       array_agg(event_id) OVER w AS event_ids
FROM counted
WINDOW w AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '1' HOUR PRECEDING AND CURRENT ROW)
QUALIFY ways >= 3
