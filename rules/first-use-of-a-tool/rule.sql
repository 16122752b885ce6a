/* rule
id: AEG-3031
name: first-use-of-a-tool
version: 1
severity: low
window: 1m
key: [agent_id, tool, action]
mode: log_only
requires: verified
suppress: 1h
atlas: [AML.T0053]            # AI agent tool invocation
owasp: [LLM06]                # excessive agency
owner: soc
description: >-
  An agent that has been in use for a day used an action for the first time, and it changes something or reads what is
  sensitive: it was given a new task, or somebody else gives it one.
false_positives: >-
  A new task; an action of the agent that is needed once in a long while, less than once in 90 days. After a start whose
  log does not go back far, what was used before it alone.
runbook: docs/runbooks/first-use-of-a-tool.md
changelog:
  - {version: 1, date: 2026-11-26, note: first version}
*/
SELECT agent_id, tool, action, resource, target, decision, data_access, mutates_state, source_trust, run_id,
       first_seen_agent AS agent_since, event_id
FROM events
WHERE kind = 'authorize_decision'
  AND decision IN ('allow', 'require_approval')
  AND (mutates_state OR data_access = 'sensitive')
  AND first_seen_agent_tool_action = ts
  AND ts >= first_seen_agent + INTERVAL '1' DAY
