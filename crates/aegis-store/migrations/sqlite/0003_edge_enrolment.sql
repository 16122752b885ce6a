-- An edge that lost the answer to its enrolment may ask again, with the same invitation and the same keys, as long as the invitation ran.
ALTER TABLE edge_keys ADD COLUMN token_hash BLOB;
ALTER TABLE edge_keys ADD COLUMN again_until INTEGER;
