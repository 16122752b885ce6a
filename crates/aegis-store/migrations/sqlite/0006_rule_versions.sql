-- One row a change of a detection rule of a tenant: the text, and what it was tried with before it could run. The highest version of a rule is
-- the one that stands; rows are never changed. `revision`: the order of changes.
CREATE TABLE rule_versions (
    tenant_id  TEXT    NOT NULL REFERENCES tenants (tenant_id),
    rule_id    TEXT    NOT NULL,
    version    INTEGER NOT NULL,
    name       TEXT    NOT NULL,
    mode       TEXT    NOT NULL CHECK (mode IN ('disabled', 'log_only', 'active')),
    hash       TEXT    NOT NULL,
    text       TEXT    NOT NULL,
    note       TEXT    NOT NULL,
    -- JSON; null for a version that runs nothing.
    backtest   TEXT,
    changed_by TEXT    NOT NULL,
    changed_at INTEGER NOT NULL,
    -- The event of the change; its receipt may be sealed later.
    event_id   TEXT,
    revision   INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, rule_id, version)
) STRICT;
CREATE INDEX rule_versions_by_revision ON rule_versions (tenant_id, revision);
