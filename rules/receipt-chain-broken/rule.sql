/* rule
id: AEG-3004
name: receipt-chain-broken
version: 2
severity: critical
window: 1m
key: [chain]
mode: active
requires: any                 # it is about events that are not verified
suppress: 1h
atlas: [AML.T0031]            # erode model integrity: the evidence is tampered with
owasp: [LLM03]                # supply chain
owner: soc
description: >-
  A receipt is missing, altered, forged or does not link to the one before it (T-C1 to T-C4). From here on the lane's events
  are not proof of anything until the break is explained. `receipts_lost`: history or lake lack a receipt, and the ledger that
  sealed it does not have it either, and did not prune it.
false_positives: >-
  A ledger that was restored from a backup or replaced, or a bus that lost its tail and has not been repaired yet.
runbook: docs/runbooks/receipt-chain-broken.md
changelog:
  - {version: 1, date: 2026-11-22, note: first version}
  - {version: 2, date: 2026-11-27, note: 'what a ledger lost is told too'}
*/
SELECT CASE WHEN kind = 'config_changed' THEN resource ELSE coalesce(lane, 'no lane, producer ' || edge_id) END AS chain,
       event_id, ref_event_id, edge_id, lane, seq, coalesce(status, reason) AS failure, reason, attributes
FROM events
WHERE kind = 'receipt_chain_broken'
   OR (kind = 'config_changed' AND reason = 'receipts_lost' AND verified)
