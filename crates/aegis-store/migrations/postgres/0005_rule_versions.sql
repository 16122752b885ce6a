-- One row a change of a detection rule of a tenant: the text, and what it was tried with before it could run. The highest version of a rule is
-- the one that stands; rows are never changed. `revision`: the order of changes.
CREATE TABLE rule_versions (
    tenant_id  TEXT COLLATE "C" NOT NULL REFERENCES tenants (tenant_id),
    rule_id    TEXT COLLATE "C" NOT NULL,
    version    BIGINT NOT NULL,
    name       TEXT COLLATE "C" NOT NULL,
    mode       TEXT COLLATE "C" NOT NULL CHECK (mode IN ('disabled', 'log_only', 'active')),
    hash       TEXT COLLATE "C" NOT NULL,
    text       TEXT COLLATE "C" NOT NULL,
    note       TEXT COLLATE "C" NOT NULL,
    -- JSON; null for a version that runs nothing.
    backtest   TEXT COLLATE "C",
    changed_by TEXT COLLATE "C" NOT NULL,
    changed_at BIGINT NOT NULL,
    -- The event of the change; its receipt may be sealed later.
    event_id   TEXT COLLATE "C",
    revision   BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, rule_id, version)
);
CREATE INDEX rule_versions_by_revision ON rule_versions (tenant_id, revision);
