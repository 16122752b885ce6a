-- Whether an edge lives, as its tenants were told last: one row an edge that was ever heard, changed with the events that tell of it.
CREATE TABLE edge_lives (
    edge_id    TEXT    NOT NULL PRIMARY KEY,
    life       TEXT    NOT NULL CHECK (life IN ('live', 'silent', 'left')),
    changed_at INTEGER NOT NULL
) STRICT;
