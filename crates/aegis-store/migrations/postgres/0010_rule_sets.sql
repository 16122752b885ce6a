-- One row a set of rules that a program ran for every tenant, in the order in which they came; rows are never changed. Of no tenant, and so without one in
-- its key: what it says holds for all.
CREATE TABLE rule_sets (
    revision    BIGINT NOT NULL PRIMARY KEY,
    digest      TEXT COLLATE "C" NOT NULL,
    -- JSON: id, name, version, mode and hash of each rule.
    rules       TEXT COLLATE "C" NOT NULL,
    recorded_at BIGINT NOT NULL
);
-- Of which of them a tenant's last receipt is.
CREATE TABLE tenant_rule_sets (
    tenant_id TEXT COLLATE "C" NOT NULL PRIMARY KEY REFERENCES tenants (tenant_id),
    revision  BIGINT NOT NULL
);
