/* rule
id: AEG-3016
name: cross-repository
version: 1
severity: medium
window: 10m
key: [agent_id]
mode: active
requires: verified
suppress: 30m
atlas: [AML.T0086]            # exfiltration via AI agent tool invocation
owasp: [LLM02, LLM06]         # sensitive information disclosure, excessive agency
owner: soc
description: >-
  An agent read internal data in one repository and within five minutes wrote to another one that others can see (T-B2).
  The write was not denied.
false_positives: >-
  An agent whose task spans repositories: a dependency updater, a release train. Give it runs and an agent of its own.
runbook: docs/runbooks/cross-repository.md
changelog:
  - {version: 1, date: 2026-11-26, note: first version}
*/
WITH calls AS (
  SELECT ts, event_id, agent_id, tool, action, resource, run_id, target,
         -- Repositories are named without regard to case, and an issue or pull request belongs to its repository.
         lower(split_part(resource, '#', 1)) AS repository,
         mutates_state AS writes
  FROM events
  WHERE kind = 'authorize_decision'
    AND decision IN ('allow', 'require_approval')
    AND resource LIKE '%/%'
    AND ((mutates_state AND destination = 'external')
         OR (NOT mutates_state AND (data_access IN ('internal', 'sensitive') OR contains_sensitive_data)))
),
looked_back AS (
  SELECT *,
         -- The first and the last repository, by name, that was read, each with the id of a read.
         min(CASE WHEN NOT writes THEN repository || event_id END) OVER w AS low_read,
         max(CASE WHEN NOT writes THEN repository || event_id END) OVER w AS high_read,
         max(CASE WHEN NOT writes THEN ts END) OVER w AS last_read,
         max(CASE WHEN writes THEN ts END) OVER (
           PARTITION BY agent_id, repository ORDER BY ts
           RANGE BETWEEN INTERVAL '5' MINUTE PRECEDING AND INTERVAL '1 microsecond' PRECEDING) AS last_write_here
  FROM calls
  WINDOW w AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '5' MINUTE PRECEDING AND CURRENT ROW)
),
compared AS (
  SELECT *,
         CASE WHEN left(low_read, -36) <> repository THEN low_read
              WHEN left(high_read, -36) <> repository THEN high_read END AS other_read
  FROM looked_back
  -- The first write here since something was read.
  WHERE writes AND (last_write_here IS NULL OR last_write_here <= last_read)
)
SELECT agent_id, tool, action, resource, target, run_id,
       left(other_read, -36) AS read_from, repository AS written_to,
       make_array(right(other_read, 36), event_id) AS event_ids
FROM compared
WHERE other_read IS NOT NULL
