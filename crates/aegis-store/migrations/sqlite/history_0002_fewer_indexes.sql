-- Nothing is read by tenant in order of arrival: lanes are exported in order of seq.
DROP INDEX history_by_place;
