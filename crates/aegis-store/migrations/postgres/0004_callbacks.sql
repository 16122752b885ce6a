-- What callbacks about approvals are signed with: the secret, and the one before it, which signs too until its time is over.
CREATE TABLE callback_secrets (
    tenant_id      TEXT COLLATE "C" NOT NULL PRIMARY KEY REFERENCES tenants (tenant_id),
    secret         TEXT COLLATE "C" NOT NULL,
    previous       TEXT COLLATE "C",
    previous_until BIGINT,
    updated_at     BIGINT NOT NULL
);

-- One row a change of an approval whose request named a callback, written with the change. `status`: what the approval changed to.
CREATE TABLE callbacks (
    tenant_id   TEXT COLLATE "C" NOT NULL,
    approval_id TEXT COLLATE "C" NOT NULL,
    version     BIGINT NOT NULL,
    callback_id TEXT COLLATE "C" NOT NULL,
    url         TEXT COLLATE "C" NOT NULL,
    status      TEXT COLLATE "C" NOT NULL,
    action_hash TEXT COLLATE "C" NOT NULL,
    -- The event of the change; its receipt may be sealed later.
    event_id    TEXT COLLATE "C",
    changed_at  BIGINT NOT NULL,
    state       TEXT COLLATE "C" NOT NULL CHECK (state IN ('waiting', 'delivered', 'given_up')),
    attempts    BIGINT NOT NULL,
    last_error  TEXT COLLATE "C",
    due_at      BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, approval_id, version),
    UNIQUE (tenant_id, callback_id),
    FOREIGN KEY (tenant_id, approval_id) REFERENCES approvals (tenant_id, approval_id)
);
CREATE INDEX callbacks_waiting ON callbacks (tenant_id, due_at) WHERE state = 'waiting';
