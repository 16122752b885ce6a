-- A sealed receipt is known by its place, (tenant, lane, seq), and its hash, and not by its id: two lanes may use one id, and both are kept. The key on the
-- id was part of the table, so the table is made anew, in the order of places; what the old one took is used again.
CREATE TABLE history_by_lane_and_seq (
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
    bus_ts       INTEGER,
    -- 1 for a receipt that proves itself, 2 for one that does and is not for its lane's producer to say, 0 for what proves nothing.
    proved       INTEGER NOT NULL,
    kept_by      TEXT,
    kept_at      INTEGER,
    -- Not 0 for what stood here already under the place and the hash of another row, when there was no key on these: its own place.
    twin         INTEGER NOT NULL DEFAULT 0,
    -- Null where an event stands in a ledger of this machine.
    wire         TEXT,
    -- 128 bits of the hash: nobody finds two receipts of a lane that have the same.
    mark         TEXT    GENERATED ALWAYS AS (substr(coalesce(receipt_hash, ''), 1, 32)) VIRTUAL
) STRICT;
INSERT INTO history_by_lane_and_seq (place, tenant_id, event_id, kind, ts, lane, seq, agent_id, run_id, decision, receipt_hash, bus_seq, bus_ts, proved,
                                     kept_by, kept_at, wire)
    SELECT place, tenant_id, event_id, kind, ts, lane, seq, agent_id, run_id, decision, receipt_hash, bus_seq, bus_ts, proved, kept_by, kept_at,
           CASE WHEN kept_by IS NULL THEN wire END
    FROM history ORDER BY place;
UPDATE history_by_lane_and_seq SET twin = place WHERE place IN (
    SELECT place FROM (
        SELECT h.place, ROW_NUMBER() OVER (
            PARTITION BY h.tenant_id, h.lane, h.seq, substr(coalesce(h.receipt_hash, ''), 1, 32) ORDER BY h.proved DESC, h.place
        ) AS nth
        FROM (
            SELECT tenant_id, lane, seq FROM history WHERE lane IS NOT NULL AND seq IS NOT NULL
            GROUP BY tenant_id, lane, seq HAVING count(*) > 1
        ) d CROSS JOIN history h ON h.tenant_id = d.tenant_id AND h.lane = d.lane AND h.seq = d.seq
    ) WHERE nth > 1
);
DROP TABLE history;
ALTER TABLE history_by_lane_and_seq RENAME TO history;
CREATE UNIQUE INDEX history_in_lanes ON history (tenant_id, lane, seq, mark, twin) WHERE lane IS NOT NULL;
CREATE UNIQUE INDEX history_observed ON history (tenant_id, event_id) WHERE lane IS NULL;
-- Ids have their time in front, so that this one grows at its end whosever they are; with the tenant, so that nobody's lookups pass another's rows.
CREATE INDEX history_by_id ON history (event_id, tenant_id) WHERE lane IS NOT NULL;
CREATE INDEX history_receipts_by_time ON history (tenant_id, ts) WHERE receipt_hash IS NOT NULL;
CREATE INDEX history_others_by_time ON history (tenant_id, ts) WHERE receipt_hash IS NULL;
-- Decisions are found among receipts by time, of which they are most.
CREATE INDEX history_by_kind ON history (tenant_id, kind, ts) WHERE kind <> 'authorize_decision';
-- What differs most comes first: it is told apart by the first comparison.
CREATE INDEX history_by_run ON history (run_id, tenant_id, ts) WHERE run_id IS NOT NULL;
CREATE INDEX history_by_agent ON history (agent_id, tenant_id, ts) WHERE agent_id IS NOT NULL;
