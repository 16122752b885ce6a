-- What callbacks about approvals are signed with: the secret, and the one before it, which signs too until its time is over.
CREATE TABLE callback_secrets (
    tenant_id      TEXT    NOT NULL PRIMARY KEY REFERENCES tenants (tenant_id),
    secret         TEXT    NOT NULL,
    previous       TEXT,
    previous_until INTEGER,
    updated_at     INTEGER NOT NULL
) STRICT;

-- One row a change of an approval whose request named a callback, written with the change. `status`: what the approval changed to.
CREATE TABLE callbacks (
    tenant_id   TEXT    NOT NULL,
    approval_id TEXT    NOT NULL,
    version     INTEGER NOT NULL,
    callback_id TEXT    NOT NULL,
    url         TEXT    NOT NULL,
    status      TEXT    NOT NULL,
    action_hash TEXT    NOT NULL,
    -- The event of the change; its receipt may be sealed later.
    event_id    TEXT,
    changed_at  INTEGER NOT NULL,
    state       TEXT    NOT NULL CHECK (state IN ('waiting', 'delivered', 'given_up')),
    attempts    INTEGER NOT NULL,
    last_error  TEXT,
    due_at      INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, approval_id, version),
    UNIQUE (tenant_id, callback_id),
    FOREIGN KEY (tenant_id, approval_id) REFERENCES approvals (tenant_id, approval_id)
) STRICT;
CREATE INDEX callbacks_waiting ON callbacks (tenant_id, due_at) WHERE state = 'waiting';
