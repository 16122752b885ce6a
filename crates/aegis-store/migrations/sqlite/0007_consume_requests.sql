-- Which request consumed an approval, as a digest, and the event of that consume: so that its answer can be given again.
ALTER TABLE approvals ADD COLUMN consume_request TEXT;
ALTER TABLE approvals ADD COLUMN consume_event TEXT;
