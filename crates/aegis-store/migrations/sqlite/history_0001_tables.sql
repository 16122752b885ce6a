-- What happened: one row an event of the bus. Evidence: kept even when its tenant is not (or not yet) registered.
-- AUTOINCREMENT: a place is never reused, so it can be a reader's cursor.
CREATE TABLE history (
    place        INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant_id    TEXT    NOT NULL,
    event_id     BLOB    NOT NULL,
    kind         TEXT    NOT NULL,
    ts           INTEGER NOT NULL,
    lane         TEXT,
    seq          INTEGER,
    agent_id     TEXT,
    run_id       TEXT,
    decision     TEXT,
    receipt_hash TEXT,
    bus_seq      INTEGER NOT NULL,
    wire         TEXT    NOT NULL,
    UNIQUE (tenant_id, event_id)
) STRICT;
CREATE INDEX history_by_place ON history (tenant_id, place);
CREATE INDEX history_by_kind ON history (tenant_id, kind, ts);
CREATE INDEX history_by_time ON history (tenant_id, ts);
CREATE INDEX history_by_run ON history (tenant_id, run_id, ts) WHERE run_id IS NOT NULL;
CREATE INDEX history_by_agent ON history (tenant_id, agent_id, ts) WHERE agent_id IS NOT NULL;
CREATE INDEX history_by_lane ON history (tenant_id, lane, seq) WHERE lane IS NOT NULL;
