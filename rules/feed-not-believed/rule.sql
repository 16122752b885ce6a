/* rule
id: AEG-3036
name: feed-not-believed
version: 1
severity: high
window: 1m
key: [edge_id, reason]
mode: active
requires: verified
suppress: 1h
atlas: [AML.T0031]            # erode model integrity: what the guard decides by is tampered with
owasp: [LLM03]                # supply chain
owner: soc
description: >-
  An edge refused entries of its control feed (forged, by another key, malformed, misplaced, older than what control said
  since, or of no use to it), or the feed has become too old (T-A6). Nothing of it is believed; but somebody tries to
  lift a freeze or to loosen a policy, or keeps from the edge what control says now.
false_positives: >-
  `stale`: a control plane, a NATS server or a network that was down for longer than `edge.feed_stale_after_s`; the edge tells
  of its start from the copy on disk likewise. `older`: a control plane whose database was restored from a backup.
  `malformed` and `unusable`: an edge that is older than its control plane. `unknown_key`: a control plane with a new key.
runbook: docs/runbooks/feed-not-believed.md
changelog:
  - {version: 1, date: 2026-11-27, note: first version}
*/
SELECT edge_id, reason, kind, attributes, event_id
FROM events
WHERE kind IN ('control_feed_refused', 'control_feed_stale')
  AND split_part(lane, '.', 2) = edge_id
