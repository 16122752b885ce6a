-- A sealed receipt is known by its place, (tenant, lane, seq), and its hash, and not by its id: two lanes may use one id, and both are kept.
-- `proved` is 1 for a receipt that proves itself, 2 for one that does and is not for its lane's producer to say, 0 for what proves nothing.
ALTER TABLE history ALTER COLUMN wire DROP NOT NULL;
-- Not 0 for what stood here already under the place and the hash of another row, when there was no key on these: its own place.
ALTER TABLE history ADD COLUMN twin BIGINT NOT NULL DEFAULT 0;
UPDATE history SET twin = place WHERE place IN (
    SELECT place FROM (
        SELECT h.place, ROW_NUMBER() OVER (
            PARTITION BY h.tenant_id, h.lane, h.seq, substr(coalesce(h.receipt_hash, ''), 1, 32) ORDER BY h.proved DESC, h.place
        ) AS nth
        FROM (
            SELECT tenant_id, lane, seq FROM history WHERE lane IS NOT NULL AND seq IS NOT NULL
            GROUP BY tenant_id, lane, seq HAVING count(*) > 1
        ) d JOIN history h ON h.tenant_id = d.tenant_id AND h.lane = d.lane AND h.seq = d.seq
    ) numbered WHERE nth > 1
);
ALTER TABLE history DROP CONSTRAINT history_tenant_id_event_id_key;
DROP INDEX history_by_lane;
DROP INDEX history_by_time;
DROP INDEX history_by_kind;
DROP INDEX history_by_run;
DROP INDEX history_by_agent;
-- 128 bits of the hash: nobody finds two receipts of a lane that have the same.
CREATE UNIQUE INDEX history_in_lanes ON history (tenant_id, lane, seq, substr(coalesce(receipt_hash, ''), 1, 32), twin) WHERE lane IS NOT NULL;
CREATE UNIQUE INDEX history_observed ON history (tenant_id, event_id) WHERE lane IS NULL;
-- Ids have their time in front, so that this one grows at its end whosever they are; with the tenant, so that nobody's lookups pass another's rows.
CREATE INDEX history_by_id ON history (event_id, tenant_id) WHERE lane IS NOT NULL;
-- With the place, in whose order two of one time are listed: nothing is left to sort.
CREATE INDEX history_receipts_by_time ON history (tenant_id, ts, place) WHERE receipt_hash IS NOT NULL;
CREATE INDEX history_others_by_time ON history (tenant_id, ts, place) WHERE receipt_hash IS NULL;
-- Decisions are found among receipts by time, of which they are most.
CREATE INDEX history_by_kind ON history (tenant_id, kind, ts, place) WHERE kind <> 'authorize_decision';
-- What differs most comes first: it is told apart by the first comparison.
CREATE INDEX history_by_run ON history (run_id, tenant_id, ts, place) WHERE run_id IS NOT NULL;
CREATE INDEX history_by_agent ON history (agent_id, tenant_id, ts, place) WHERE agent_id IS NOT NULL;
