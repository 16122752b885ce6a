/* rule
id: AEG-3001
name: confused-deputy
version: 1
severity: high
window: 1m
key: [agent_id]
mode: active
requires: verified
suppress: 10m
atlas: [AML.T0051.001]        # LLM prompt injection: indirect
owasp: [LLM01, LLM06]         # prompt injection, excessive agency
owner: soc
description: >-
  An agent whose context comes from outside was refused a call that changes something or touches sensitive data: somebody
  else's text may be steering it (T-B1). The call did not run.
false_positives: >-
  An agent that answers public tickets and is allowed too little for its task. Look at the policies that denied the call.
runbook: docs/runbooks/confused-deputy.md
changelog:
  - {version: 1, date: 2026-11-22, note: first version}
*/
SELECT agent_id, event_id, run_id, tool, action, resource, target, source_trust, root_trust, reason
FROM events
WHERE kind = 'authorize_decision'
  AND decision = 'deny'
  AND source_trust IN ('untrusted_external', 'malicious_suspected')
  AND (mutates_state OR contains_sensitive_data OR data_access = 'sensitive')
