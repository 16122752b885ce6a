/* rule
id: AEG-3007
name: replay
version: 1
severity: medium
window: 1m
key: [agent_id]
mode: active
requires: verified
suppress: 10m
atlas: [AML.T0091.000]        # application access token
owasp: [LLM06]                # excessive agency
owner: soc
description: >-
  A nonce, a request id or an approval was used again, or a request came long after it was made (T-A3). The edge or the
  control plane refused it; nothing ran twice.
false_positives: >-
  A client that retries a consume whose answer was lost, or that draws its request ids or nonces from too small a set; a
  machine whose clock is minutes off.
runbook: docs/runbooks/replay.md
changelog:
  - {version: 1, date: 2026-11-26, note: first version}
*/
SELECT agent_id, event_id, reason, token_id, edge_id, run_id, tool, action, resource, approval_id
FROM events
WHERE kind = 'replay_attempt'
  -- An approval that was used too late was not used before.
  AND coalesce(reason, '') <> 'approval_expired'
