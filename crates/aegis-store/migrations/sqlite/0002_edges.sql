-- Edges serve several tenants: they are the deployment's, and no tenant's. So none of these keys starts with tenant_id.

-- An invitation is used once; a new one for the same edge replaces it.
CREATE TABLE edge_invitations (
    edge_id    TEXT    NOT NULL PRIMARY KEY,
    token_hash BLOB    NOT NULL UNIQUE,
    tenants    TEXT    NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;

-- Every key that an edge was ever enrolled with: receipts of an earlier one must still be proved.
CREATE TABLE edge_keys (
    key_id      TEXT    NOT NULL PRIMARY KEY,
    edge_id     TEXT    NOT NULL,
    public_key  TEXT    NOT NULL,
    nkey        TEXT    NOT NULL,
    tenants     TEXT    NOT NULL,
    enrolled_at INTEGER NOT NULL
) STRICT;
CREATE INDEX edge_keys_of_edge ON edge_keys (edge_id, enrolled_at);
