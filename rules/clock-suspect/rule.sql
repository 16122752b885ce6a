/* rule
id: AEG-3006
name: clock-suspect
version: 2
severity: medium
window: 1m
key: [edge_id]
mode: active
requires: verified
suppress: 1h
atlas: [AML.T0012]            # valid accounts: a token is good, and a hold is over, at other times than they say
owasp: [LLM06]                # excessive agency
owner: soc
description: >-
  An edge decided while its clock was off by more than a second after it was corrected by control's. Times of its events, the
  order of events across edges, and the ends of holds and tokens are off by as much there.
false_positives: >-
  A machine that was suspended, or whose clock was set: the edge follows within ten seconds.
runbook: docs/runbooks/clock-suspect.md
changelog:
  - {version: 1, date: 2026-11-25, note: first version}
  - {version: 2, date: 2026-11-27, note: tags of ATLAS and OWASP}
*/
SELECT edge_id, event_id, lane, agent_id, decision
FROM events
WHERE clock_suspect
