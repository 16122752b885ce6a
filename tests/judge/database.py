"""The tables of a rule's query in DuckDB: `events` as one tenant sees them at one instant, what the side tables say of each of them, and `alerts`.
All of it is told from the log by queries of their own, after the letter of docs/specs/detection-rule.md."""

import hashlib
import json

import duckdb

from histories import VOCABULARY, event_id

START_US = 1_767_225_600_000_000
"""Time zero of a rule test, 2026-01-01."""
UNSET = ["ref_event_id", "root_trust", "trace_id", "receipt_hash", "source"]
"""Columns that are null in every history."""
BOOLEANS = {"mutates_state", "contains_sensitive_data", "clock_suspect", "verified"}
PAUSE = 90 * 86_400_000_000
HOUR = 3_600_000_000

ALERT_COLUMNS = ["agent_id", "token_id", "user_id", "run_id", "trace_id", "environment", "tool", "action", "resource", "target", "approver"]
"""Columns of `alerts` that are of the key."""

# A use is a verified call that is not denied.
USES = """CREATE OR REPLACE TABLE uses AS
  SELECT tenant_id, agent_id, tool, action, us, us // {hour} AS hour FROM log
  WHERE verified AND kind = 'authorize_decision' AND decision IN ('allow', 'require_approval')
    AND agent_id IS NOT NULL AND tool IS NOT NULL AND action IS NOT NULL"""

# Of an agent, and of an agent with a tool and an action: when it was used, and the uses with no other within 90 days before.
USED = """CREATE OR REPLACE TABLE used AS
  SELECT *, lag(us) OVER (PARTITION BY tenant_id, what ORDER BY us) AS us_before
  FROM (SELECT tenant_id, [agent_id] AS what, us FROM uses UNION ALL SELECT tenant_id, [agent_id, tool, action], us FROM uses)"""

FIRST_SEEN = """CREATE OR REPLACE MACRO first_seen(of_tenant, of_what, to_us) AS (
  SELECT CASE WHEN to_us - max(us) <= {pause} THEN make_timestamptz(max(us) FILTER (WHERE us_before IS NULL OR us - us_before > {pause})) END
  FROM used WHERE tenant_id = of_tenant AND what = of_what AND us <= to_us)"""

HOURS = "CREATE OR REPLACE TABLE hours AS SELECT tenant_id, agent_id, hour, count(*) AS uses FROM uses GROUP BY ALL"

# Control's records: each agent's registrations, and what became of its holds.
RECORDS = """CREATE OR REPLACE TABLE records AS
  SELECT *, attributes ->> '$.kind' AS hold, CAST(attributes ->> '$.until' AS TIMESTAMPTZ) AS until,
         CASE kind WHEN 'config_changed' THEN attributes ->> '$.agent.id' ELSE agent_id END AS about
  FROM log
  WHERE verified AND split_part(lane, '.', 2) = 'control'
    AND (kind = 'config_changed' AND reason IN ('agent_registered', 'agent_registered_again')
         OR kind = 'containment_applied' AND status IN ('applied', 'released', 'revoked'))"""

# What is registered of each agent at each time of its tenant, and since when it is held, if it is.
KNOWN = """CREATE OR REPLACE TABLE known AS
  WITH times AS (SELECT DISTINCT tenant_id, us FROM log),
  registered AS (
    SELECT times.tenant_id, times.us, about, max_by(attributes, [records.us, seq]) AS said
    FROM times JOIN records ON records.tenant_id = times.tenant_id AND records.us BETWEEN times.us - {pause} AND times.us
    WHERE kind = 'config_changed' GROUP BY ALL),
  open AS (
    SELECT times.tenant_id, times.us, held.about, max(held.us) AS since
    FROM times JOIN records AS held ON held.tenant_id = times.tenant_id AND held.us BETWEEN times.us - {pause} AND times.us
    WHERE held.status = 'revoked'
       OR held.status = 'applied' AND (held.until IS NULL OR held.until > make_timestamptz(times.us)) AND NOT EXISTS (
            SELECT 1 FROM records AS free
            WHERE free.tenant_id = held.tenant_id AND free.about = held.about AND free.status = 'released' AND free.us <= times.us
              AND (free.us, free.seq) > (held.us, held.seq) AND (free.hold IS NULL OR free.hold = coalesce(held.hold, 'freeze')))
    GROUP BY ALL)
  SELECT registered.*, said ->> '$.agent.owner_team' AS owner_team, since
  FROM registered LEFT JOIN open USING (tenant_id, us, about)"""

# What control says of actions: each as it is registered, and what it was, or that it is gone, and what it was.
SAID = """CREATE OR REPLACE TABLE said AS
  WITH registrations AS (
    SELECT *, attributes ->> '$.tool' AS of_tool FROM log
    WHERE verified AND split_part(lane, '.', 2) = 'control' AND kind = 'config_changed' AND reason IN ('tool_registered', 'tool_registered_more')),
  each AS (
    SELECT tenant_id, us, seq, event_id, of_tool, unnest(CAST(attributes -> '$.actions' AS JSON[])) AS entry, true AS stands FROM registrations
    UNION ALL
    SELECT tenant_id, us, seq, event_id, of_tool, unnest(CAST(attributes -> '$.removed' AS JSON[])), false FROM registrations),
  named AS (
    SELECT tenant_id, us, seq, event_id, stands, [of_tool, entry ->> '$.action'] AS what, entry ->> '$.risk' AS risk,
           CAST(entry ->> '$.approval_required' AS BOOLEAN) AS approval_required, CAST(entry ->> '$.mutates_state' AS BOOLEAN) AS mutates_state,
           entry ->> '$.data_access' AS data_access, entry ->> '$.destination' AS destination, entry ->> '$.default_decision' AS default_decision,
           entry ->> '$.was.risk' AS was_risk, CAST(entry ->> '$.was.approval_required' AS BOOLEAN) AS was_approval
    FROM each),
  compared AS (
    -- All that stands of an action, and nothing of one that does not.
    SELECT *, CASE WHEN stands THEN [risk, approval_required::VARCHAR, mutates_state::VARCHAR, data_access, destination, default_decision] END AS facts,
           lag(us) OVER w AS us_before, lag(stands) OVER w AS stood_before, lag(risk) OVER w AS risk_before, lag(approval_required) OVER w AS approval_before
    FROM named WINDOW w AS (PARTITION BY tenant_id, what ORDER BY us, seq))
  SELECT *,
         -- What it was, or was before it was gone.
         CASE WHEN was_risk IS NOT NULL THEN was_risk WHEN NOT stood_before AND us - us_before <= {pause} THEN risk_before END AS from_risk,
         CASE WHEN was_risk IS NOT NULL THEN was_approval WHEN NOT stood_before AND us - us_before <= {pause} THEN approval_before END AS from_approval,
         -- With this record something else stands, or what stood so long ago that it is not known, or control says that it is another.
         was_risk IS NOT NULL OR us_before IS NULL OR us - us_before > {pause} OR facts IS DISTINCT FROM lag(facts) OVER w AS begins
  FROM compared WINDOW w AS (PARTITION BY tenant_id, what ORDER BY us, seq)"""

RANK = """CREATE OR REPLACE MACRO is_lower(risk, approval, from_risk, from_approval) AS
  (list_position(['low', 'medium', 'high', 'critical'], risk) < list_position(['low', 'medium', 'high', 'critical'], from_risk) OR from_approval AND NOT approval)"""

# What stands of each action at each time of its tenant: its newest record, unless that is too long ago, or says that it is gone.
STANDING = """CREATE OR REPLACE TABLE standing AS
  WITH asked AS (SELECT DISTINCT tenant_id, us, [tool, action] AS what FROM log WHERE tool IS NOT NULL AND action IS NOT NULL),
  newest AS (
    SELECT asked.tenant_id, asked.us AS at_us, asked.what, max([said.us, said.seq]) AS place
    FROM asked JOIN said ON said.tenant_id = asked.tenant_id AND said.what = asked.what AND said.us <= asked.us GROUP BY ALL),
  now AS (
    SELECT newest.at_us, said.* FROM newest JOIN said ON said.tenant_id = newest.tenant_id AND said.what = newest.what AND [said.us, said.seq] = newest.place
    WHERE said.stands AND newest.at_us - said.us <= {pause})
  SELECT now.*,
         (SELECT max(us) FROM said WHERE said.tenant_id = now.tenant_id AND said.what = now.what AND said.begins AND (said.us, said.seq) <= (now.us, now.seq)) AS since,
         (SELECT max_by({{'us': us, 'risk': from_risk, 'id': event_id}}, [us, seq]) FROM said
            WHERE said.tenant_id = now.tenant_id AND said.what = now.what AND said.stands AND (said.us, said.seq) <= (now.us, now.seq)
              AND now.at_us - said.us <= {pause} AND is_lower(said.risk, said.approval_required, from_risk, from_approval)
              AND is_lower(now.risk, now.approval_required, from_risk, from_approval)) AS lowering
  FROM now"""

SIDED = """CREATE OR REPLACE TABLE sided AS
  SELECT log.*,
         first_seen(log.tenant_id, [log.agent_id], log.us) AS first_seen_agent,
         first_seen(log.tenant_id, [log.agent_id, log.tool, log.action], log.us) AS first_seen_agent_tool_action,
         (SELECT quantile_disc(uses, 0.5) FROM hours WHERE hours.tenant_id = log.tenant_id AND hours.agent_id = log.agent_id
            AND hour BETWEEN log.us // {hour} - 168 AND log.us // {hour} - 1) AS baseline_hourly_uses,
         (SELECT nullif(count(*), 0) FROM hours WHERE hours.tenant_id = log.tenant_id AND hours.agent_id = log.agent_id
            AND hour BETWEEN log.us // {hour} - 168 AND log.us // {hour} - 1) AS baseline_active_hours,
         own.said ->> '$.agent.agent_key' AS registry_agent_key,
         own.owner_team AS registry_owner_team,
         own.said ->> '$.agent.environment' AS registry_environment,
         own.said ->> '$.agent.risk_tier' AS registry_risk_tier,
         own.said ->> '$.agent.trust_ceiling' AS registry_trust_ceiling,
         CASE WHEN own.owner_team IS NOT NULL THEN coalesce((
           SELECT list(other.about ORDER BY other.since DESC, other.about DESC) FROM known AS other
           WHERE other.tenant_id = log.tenant_id AND other.us = log.us AND other.owner_team = own.owner_team
             AND other.about <> log.agent_id AND other.since IS NOT NULL), []) END AS registry_frozen_siblings,
         act.risk AS registry_action_risk,
         act.mutates_state AS registry_action_mutates_state,
         act.data_access AS registry_action_data_access,
         act.destination AS registry_action_destination,
         act.approval_required AS registry_action_approval_required,
         act.default_decision AS registry_action_default_decision,
         make_timestamptz(act.since) AS registry_action_since,
         make_timestamptz(act.lowering.us) AS registry_action_lowered,
         act.lowering.risk AS registry_action_lowered_from,
         act.lowering.id AS registry_action_lowered_event
  FROM log LEFT JOIN known AS own ON own.tenant_id = log.tenant_id AND own.us = log.us AND own.about = log.agent_id
    LEFT JOIN standing AS act ON act.tenant_id = log.tenant_id AND act.at_us = log.us AND act.what = [log.tool, log.action]"""

VIEW = """CREATE OR REPLACE VIEW {name} AS SELECT * EXCLUDE (us) FROM {table}
  WHERE tenant_id = getvariable('tenant') AND us BETWEEN getvariable('first') AND getvariable('last')"""


def open_database():
    """A database whose views `events` and `alerts` are what the query of one tenant sees at one instant."""
    database = duckdb.connect()
    database.execute("SET threads = 1")
    database.execute("SET TimeZone = 'UTC'")
    columns = ["event_id VARCHAR", "tenant_id VARCHAR", "ts TIMESTAMPTZ", "us BIGINT", "lane VARCHAR", "seq BIGINT", "kind VARCHAR"]
    columns += [f"{name} {'BOOLEAN' if name in BOOLEANS else 'VARCHAR'}" for name in [*VOCABULARY, "attributes", *UNSET]]
    database.execute(f"CREATE TABLE log ({', '.join(columns)})")
    columns = ["tenant_id", "alert_id", "rule_id", "rule_name", "severity", "mode", "event_id", "first_event_id", "key", *ALERT_COLUMNS]
    database.execute(f"CREATE TABLE told ({', '.join(f'{name} VARCHAR' for name in columns)}, us BIGINT, ts TIMESTAMPTZ)")
    database.execute(VIEW.format(name="alerts", table="told"))
    database.execute("CREATE MACRO make_array(a, b) AS [a, b], (a, b, c) AS [a, b, c]")
    database.execute("CREATE MACRO array_element(list, place) AS list_extract(list, place)")
    database.execute("CREATE MACRO cardinality(list) AS len(list)")
    # In the order of the longer one, which a rule that takes the first of several stands on.
    common = "list_filter({0}, lambda x: list_contains({1}, x))"
    database.execute(f"CREATE MACRO array_intersect(a, b) AS CASE WHEN len(a) < len(b) THEN {common.format('b', 'a')} ELSE {common.format('a', 'b')} END")
    return database


def fill(database, events, with_sides):
    """Makes these events the log. Answers each id's place in the order of events with its label."""
    database.execute("DELETE FROM log")
    names = ["event_id", "tenant_id", "us", "lane", "seq", "kind", *VOCABULARY, "attributes"]
    rows, order = [], {}
    for event in events:
        us = START_US + event["ms"] * 1000
        row = dict(event, event_id=event_id(event["tenant_id"], event["id"]), us=us)
        rows.append([row.get(name) for name in names])
        # Nulls come first.
        place = (us, event["lane"] or "", event["seq"] or 0, row["event_id"])
        order[row["event_id"]] = (place, event["id"])
    insert(database, "log", names, rows)
    if with_sides:
        for statement in (USES, USED, FIRST_SEEN, HOURS, RECORDS, KNOWN, SAID, RANK, STANDING, SIDED):
            database.execute(statement.format(pause=PAUSE, hour=HOUR))
    view = VIEW.format(name="events", table="sided" if with_sides else "log")
    database.execute(f"{view} AND (verified OR NOT getvariable('verified'))")
    return order


def fill_alerts(database, raised):
    """Makes these the alerts: of each its rule, tenant, key and evidence."""
    database.execute("DELETE FROM told")
    names = ["tenant_id", "alert_id", "rule_id", "rule_name", "severity", "mode", "event_id", "first_event_id", "key", *ALERT_COLUMNS, "us"]
    rows = []
    for rule, tenant, key, evidence in raised:
        ((*_, first), _), ((us, *_, last), _) = evidence[0], evidence[-1]
        own = [tenant, alert_id(tenant, rule, key, first), rule.id, rule.name, rule.severity, rule.mode, last, first, json.dumps(key)]
        rows.append([*own, *(key.get(name) for name in ALERT_COLUMNS), us])
    if rows:
        insert(database, "told", names, rows)


def insert(database, table, names, rows):
    """Inserts rows, and of each the time `ts` that its `us` is."""
    marks = ", ".join("?" for _ in names)
    database.executemany(f"INSERT INTO {table} ({', '.join(names)}, ts) SELECT {', '.join('x.' + n for n in names)}, make_timestamptz(x.us) "
                         f"FROM (VALUES ({marks})) AS x({', '.join(names)})", rows)


def alert_id(tenant, rule, key, first):
    text = json.dumps([tenant, rule.id, key, first], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def rows_at(database, rule, tenant, first, last):
    """What the query answers over a tenant's rows of that time: names of columns, and rows."""
    for name, value in (("tenant", tenant), ("first", first), ("last", last), ("verified", rule.verified)):
        database.execute(f"SET VARIABLE {name} = {sql_text(value)}")
    result = database.execute(rule.sql)
    return [column[0] for column in result.description], result.fetchall()


def sql_text(value):
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    return f"'{value}'" if isinstance(value, str) else f"{value}::BIGINT"
