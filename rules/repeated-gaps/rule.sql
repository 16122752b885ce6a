/* rule
id: AEG-3027
name: repeated-gaps
version: 1
severity: medium
window: 2h
key: [edge_id]
mode: active
requires: verified
suppress: 1h
atlas: [AML.T0031]            # erode model integrity: the evidence is thinned out
owasp: [LLM03]                # supply chain
owner: soc
description: >-
  A producer of receipts declared three gaps within an hour: it stopped uncleanly, or dropped receipts of harmless
  reads, again and again. What a gap covers leaves no evidence (T-C4).
false_positives: >-
  A machine that runs out of memory or of disk, and is restarted by its supervisor.
runbook: docs/runbooks/repeated-gaps.md
changelog:
  - {version: 1, date: 2026-11-26, note: first version}
*/
WITH counted AS (
  SELECT ts, event_id, edge_id, lane, reason,
         count(*) OVER (PARTITION BY edge_id ORDER BY ts
                        RANGE BETWEEN INTERVAL '1' HOUR PRECEDING AND INTERVAL '1 microsecond' PRECEDING) AS before
  FROM events
  WHERE kind = 'lane_gap'
)
SELECT edge_id, lane, reason,
       count(*) OVER w AS gaps,
       array_agg(event_id) OVER w AS event_ids
FROM counted
WHERE before < 3
WINDOW w AS (PARTITION BY edge_id ORDER BY ts RANGE BETWEEN INTERVAL '1' HOUR PRECEDING AND CURRENT ROW)
QUALIFY gaps >= 3
