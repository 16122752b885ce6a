/* rule
id: AEG-3024
name: canonicalization-skew
version: 2
severity: low
window: 1m
key: [agent_id]
mode: active
requires: verified
suppress: 1h
atlas: [AML.T0010.001]        # AI supply chain compromise: AI software
owasp: [LLM03]                # supply chain
owner: soc
description: >-
  A caller names a canonical form that this version does not know (T-A4). Its requests are refused: two forms of one
  action would have two hashes.
false_positives: >-
  A client library that is newer, or older, than the server.
runbook: docs/runbooks/canonicalization-skew.md
changelog:
  - {version: 1, date: 2026-11-26, note: first version}
  - {version: 2, date: 2026-11-27, note: a tag of ATLAS}
*/
SELECT agent_id, event_id, edge_id, token_id, tool, action
FROM events
WHERE kind = 'canonicalization_skew'
