-- One row a change that an operator makes of a rule that every tenant has; rows are never changed. The row with the highest revision of a rule is
-- what stands: in place of the program's rule of that id, or of none. Of no tenant, and so without one in its key: what it says holds for all.
CREATE TABLE common_rule_versions (
    rule_id      TEXT COLLATE "C" NOT NULL,
    version      BIGINT NOT NULL,
    name         TEXT COLLATE "C" NOT NULL,
    mode         TEXT COLLATE "C" NOT NULL CHECK (mode IN ('disabled', 'log_only', 'active')),
    hash         TEXT COLLATE "C" NOT NULL,
    -- Empty: the rule is again as the program has it.
    text         TEXT COLLATE "C" NOT NULL,
    note         TEXT COLLATE "C" NOT NULL,
    -- JSON; null for what was not run over the history.
    backtest     TEXT COLLATE "C",
    -- The text that the program had of the rule then, by its hash; null if it had none.
    program_hash TEXT COLLATE "C",
    changed_by   TEXT COLLATE "C" NOT NULL,
    changed_at   BIGINT NOT NULL,
    revision     BIGINT NOT NULL,
    PRIMARY KEY (rule_id, revision)
);
CREATE INDEX common_rule_versions_by_revision ON common_rule_versions (revision);
