/* rule
id: AEG-3033
name: silent-edge
version: 1
severity: medium
window: 1m
key: [resource]
mode: active
requires: verified
suppress: 1h
atlas: [AML.T0029]            # denial of AI service
owasp: [LLM06]                # excessive agency
owner: soc
description: >-
  An enrolled edge that lived is not heard any more, and did not stop as it should (T-C4, T-E1). Somebody stopped it or cut it
  off: what it decides meanwhile reaches nobody, a freeze does not reach it, and its agents are denied or go around it.
false_positives: >-
  A machine that crashed, was suspended or lost its network for longer than `control.edge_silent_after_s`; an edge that was
  stopped by force, or while it could not say so.
runbook: docs/runbooks/silent-edge.md
changelog:
  - {version: 1, date: 2026-11-27, note: first version}
*/
SELECT resource, event_id
FROM events
WHERE kind = 'edge_silent' AND lane LIKE '%.control.%'
