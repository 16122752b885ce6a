/* rule
id: AEG-3040
name: rules-not-believed
version: 1
severity: high
window: 1m
key: [reason]
mode: active
requires: verified
suppress: 1h
atlas: [AML.T0031]            # erode model integrity: what finds attacks is tampered with
owasp: [LLM03]                # supply chain
owner: soc
description: >-
  Somebody put a record of detection rules into the log that control did not sign, or one that it signed and has replaced
  since (T-A6, T-D3). It changed nothing; but whoever writes there wants a rule turned off, or loosened.
false_positives: >-
  `unsigned`: an upgrade from a version that did not sign its records, with such records unread. `older`: a control
  plane whose database was restored from a backup, or a stream that was restored while detection read it. `unknown_key`: a
  control plane with a new key. `malformed`: a detection that is older than its control plane.
runbook: docs/runbooks/rules-not-believed.md
changelog:
  - {version: 1, date: 2026-11-27, note: first version}
*/
SELECT reason, resource, attributes, event_id
FROM events
WHERE kind = 'rule_record_refused'
