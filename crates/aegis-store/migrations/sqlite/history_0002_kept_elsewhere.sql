-- Nothing is read by tenant in order of arrival: lanes are exported in order of seq.
DROP INDEX history_by_place;
-- An event that stands in a ledger of this machine is not stored twice: `wire` is empty then.
ALTER TABLE history ADD COLUMN kept_by TEXT;
ALTER TABLE history ADD COLUMN kept_at INTEGER;
