-- 1 for a receipt that proves itself, which nothing replaces. What is here already is taken as such.
ALTER TABLE history ADD COLUMN proved BIGINT NOT NULL DEFAULT 1;
-- When the bus stored the event, microseconds; null for what came before this was kept.
ALTER TABLE history ADD COLUMN bus_ts BIGINT;
-- How far each lane is in the history, counting proved receipts only, and what is missing before that: `from-to` stretches with commas between.
CREATE TABLE history_lanes (
    tenant_id TEXT COLLATE "C" NOT NULL,
    lane      TEXT COLLATE "C" NOT NULL,
    head      BIGINT NOT NULL,
    missing   TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (tenant_id, lane)
);
CREATE INDEX history_lanes_with_gaps ON history_lanes (tenant_id, lane) WHERE missing <> '';
INSERT INTO history_lanes (tenant_id, lane, head, missing)
    SELECT tenant_id, lane, max(seq), '' FROM history WHERE lane IS NOT NULL AND seq IS NOT NULL GROUP BY tenant_id, lane;
