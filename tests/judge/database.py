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
             AND other.about <> log.agent_id AND other.since IS NOT NULL), []) END AS registry_frozen_siblings
  FROM log LEFT JOIN known AS own ON own.tenant_id = log.tenant_id AND own.us = log.us AND own.about = log.agent_id"""

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
        for statement in (USES, USED, FIRST_SEEN, HOURS, RECORDS, KNOWN, SIDED):
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
