-- One row a change that an operator makes of a rule that every tenant has; rows are never changed. The row with the highest revision of a rule is
-- what stands: in place of the program's rule of that id, or of none. Of no tenant, and so without one in its key: what it says holds for all.
CREATE TABLE common_rule_versions (
    rule_id      TEXT    NOT NULL,
    version      INTEGER NOT NULL,
    name         TEXT    NOT NULL,
    mode         TEXT    NOT NULL CHECK (mode IN ('disabled', 'log_only', 'active')),
    hash         TEXT    NOT NULL,
    -- Empty: the rule is again as the program has it.
    text         TEXT    NOT NULL,
    note         TEXT    NOT NULL,
    -- JSON; null for what was not run over the history.
    backtest     TEXT,
    -- The text that the program had of the rule then, by its hash; null if it had none.
    program_hash TEXT,
    changed_by   TEXT    NOT NULL,
    changed_at   INTEGER NOT NULL,
    revision     INTEGER NOT NULL,
    PRIMARY KEY (rule_id, revision)
) STRICT;
CREATE INDEX common_rule_versions_by_revision ON common_rule_versions (revision);
