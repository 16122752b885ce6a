-- The control plane's tables, and what happened, as one database. Times are microseconds since the epoch (UTC), booleans 0 or 1, ids text,
-- nested values JSON text. Texts compare by their bytes, as in SQLite.
-- Every key of tenant data starts with tenant_id; the three exceptions say why they are.

-- One counter for the whole database: every change of something an edge believes takes the next value.
CREATE TABLE revision (
    id    BIGINT NOT NULL PRIMARY KEY CHECK (id = 1),
    value BIGINT NOT NULL
);
INSERT INTO revision (id, value) VALUES (1, 0);

CREATE TABLE tenants (
    tenant_id  TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    name       TEXT COLLATE "C" NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE TABLE settings (
    tenant_id TEXT COLLATE "C" NOT NULL PRIMARY KEY REFERENCES tenants (tenant_id),
    body      TEXT COLLATE "C" NOT NULL,
    revision  BIGINT NOT NULL
);

CREATE TABLE webhook_secrets (
    tenant_id  TEXT COLLATE "C" NOT NULL REFERENCES tenants (tenant_id),
    adapter    TEXT COLLATE "C" NOT NULL,
    secret     TEXT COLLATE "C" NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, adapter)
);

-- key_hash is unique over all tenants: a presented key names its tenant, nothing else does.
CREATE TABLE api_keys (
    tenant_id  TEXT COLLATE "C" NOT NULL REFERENCES tenants (tenant_id),
    key_id     TEXT COLLATE "C" NOT NULL,
    key_hash   BYTEA NOT NULL UNIQUE,
    role       TEXT COLLATE "C" NOT NULL CHECK (role IN ('admin', 'registrar', 'approver', 'analyst', 'auditor')),
    name       TEXT COLLATE "C" NOT NULL,
    groups     TEXT COLLATE "C" NOT NULL,
    created_at BIGINT NOT NULL,
    revoked_at BIGINT,
    PRIMARY KEY (tenant_id, key_id)
);

CREATE TABLE agents (
    tenant_id     TEXT COLLATE "C" NOT NULL REFERENCES tenants (tenant_id),
    id            TEXT COLLATE "C" NOT NULL,
    agent_key     TEXT COLLATE "C" NOT NULL,
    name          TEXT COLLATE "C" NOT NULL,
    owner_team    TEXT COLLATE "C",
    environment   TEXT COLLATE "C" NOT NULL,
    risk_tier     TEXT COLLATE "C" NOT NULL,
    trust_ceiling TEXT COLLATE "C" NOT NULL,
    registrar     TEXT COLLATE "C" NOT NULL,
    created_at    BIGINT NOT NULL,
    revision      BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, id),
    UNIQUE (tenant_id, agent_key)
);
CREATE INDEX agents_by_age ON agents (tenant_id, created_at);

CREATE TABLE tools (
    tenant_id    TEXT COLLATE "C" NOT NULL REFERENCES tenants (tenant_id),
    tool         TEXT COLLATE "C" NOT NULL,
    name         TEXT COLLATE "C" NOT NULL,
    default_risk TEXT COLLATE "C" NOT NULL,
    revision     BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, tool)
);

CREATE TABLE actions (
    tenant_id         TEXT COLLATE "C" NOT NULL,
    tool              TEXT COLLATE "C" NOT NULL,
    action            TEXT COLLATE "C" NOT NULL,
    place             BIGINT NOT NULL,
    description       TEXT COLLATE "C",
    risk              TEXT COLLATE "C" NOT NULL,
    mutates_state     BIGINT NOT NULL CHECK (mutates_state IN (0, 1)),
    data_access       TEXT COLLATE "C" NOT NULL,
    destination       TEXT COLLATE "C" NOT NULL,
    target_parameter  TEXT COLLATE "C",
    parameters        TEXT COLLATE "C",
    approval_required BIGINT NOT NULL CHECK (approval_required IN (0, 1)),
    default_decision  TEXT COLLATE "C" NOT NULL CHECK (default_decision IN ('policy', 'allow', 'deny')),
    PRIMARY KEY (tenant_id, tool, action),
    FOREIGN KEY (tenant_id, tool) REFERENCES tools (tenant_id, tool) ON DELETE CASCADE
);

CREATE TABLE mcp_servers (
    tenant_id  TEXT COLLATE "C" NOT NULL REFERENCES tenants (tenant_id),
    server_key TEXT COLLATE "C" NOT NULL,
    name       TEXT COLLATE "C" NOT NULL,
    url        TEXT COLLATE "C",
    drifted    BIGINT NOT NULL CHECK (drifted IN (0, 1)),
    revision   BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, server_key)
);

CREATE TABLE mcp_tools (
    tenant_id     TEXT COLLATE "C" NOT NULL,
    server_key    TEXT COLLATE "C" NOT NULL,
    name          TEXT COLLATE "C" NOT NULL,
    place         BIGINT NOT NULL,
    manifest_hash TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (tenant_id, server_key, name),
    FOREIGN KEY (tenant_id, server_key) REFERENCES mcp_servers (tenant_id, server_key) ON DELETE CASCADE
);

CREATE TABLE channels (
    tenant_id    TEXT COLLATE "C" NOT NULL REFERENCES tenants (tenant_id),
    channel      TEXT COLLATE "C" NOT NULL,
    source_trust TEXT COLLATE "C" NOT NULL,
    public_key   TEXT COLLATE "C",
    revision     BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, channel)
);

CREATE TABLE resources (
    tenant_id   TEXT COLLATE "C" NOT NULL REFERENCES tenants (tenant_id),
    resource    TEXT COLLATE "C" NOT NULL,
    tool        TEXT COLLATE "C",
    visibility  TEXT COLLATE "C" NOT NULL,
    owner       TEXT COLLATE "C",
    observed_at BIGINT,
    revision    BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, resource)
);

CREATE TABLE policies (
    tenant_id TEXT COLLATE "C" NOT NULL PRIMARY KEY REFERENCES tenants (tenant_id),
    body      TEXT COLLATE "C" NOT NULL,
    revision  BIGINT NOT NULL
);

CREATE TABLE containment_states (
    tenant_id   TEXT COLLATE "C" NOT NULL REFERENCES tenants (tenant_id),
    target_type TEXT COLLATE "C" NOT NULL,
    target_id   TEXT COLLATE "C" NOT NULL,
    revoked     BIGINT NOT NULL CHECK (revoked IN (0, 1)),
    revision    BIGINT NOT NULL,
    issued_at   BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, target_type, target_id)
);

-- Ended holds stay: the hourly cap on automatic holds counts them, and they are the record of who held what, and why.
CREATE TABLE containment_holds (
    tenant_id   TEXT COLLATE "C" NOT NULL,
    target_type TEXT COLLATE "C" NOT NULL,
    target_id   TEXT COLLATE "C" NOT NULL,
    hold_id     TEXT COLLATE "C" NOT NULL,
    kind        TEXT COLLATE "C" NOT NULL,
    reason      TEXT COLLATE "C" NOT NULL,
    held_by     TEXT COLLATE "C" NOT NULL,
    automatic   BIGINT NOT NULL CHECK (automatic IN (0, 1)),
    since       BIGINT NOT NULL,
    until       BIGINT,
    applied_at  BIGINT NOT NULL,
    ended_at    BIGINT,
    PRIMARY KEY (tenant_id, target_type, target_id, hold_id),
    FOREIGN KEY (tenant_id, target_type, target_id) REFERENCES containment_states (tenant_id, target_type, target_id)
);
CREATE INDEX containment_holds_automatic ON containment_holds (tenant_id, applied_at) WHERE automatic = 1;

CREATE TABLE commands (
    tenant_id  TEXT COLLATE "C" NOT NULL REFERENCES tenants (tenant_id),
    command_id TEXT COLLATE "C" NOT NULL,
    applied_at BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, command_id)
);

CREATE TABLE approvals (
    tenant_id        TEXT COLLATE "C" NOT NULL REFERENCES tenants (tenant_id),
    approval_id      TEXT COLLATE "C" NOT NULL,
    agent_id         TEXT COLLATE "C" NOT NULL,
    status           TEXT COLLATE "C" NOT NULL CHECK (status IN ('PENDING', 'APPROVED', 'REJECTED', 'EXPIRED', 'CONSUMED')),
    frozen           TEXT COLLATE "C" NOT NULL,
    edited           TEXT COLLATE "C",
    edited_by        TEXT COLLATE "C",
    current_hash     TEXT COLLATE "C" NOT NULL,
    policy_digest    TEXT COLLATE "C" NOT NULL,
    approvals_needed BIGINT NOT NULL CHECK (approvals_needed >= 1),
    requested_at     BIGINT NOT NULL,
    expires_at       BIGINT NOT NULL,
    decided_at       BIGINT,
    decided_by       TEXT COLLATE "C",
    consumed_at      BIGINT,
    PRIMARY KEY (tenant_id, approval_id)
);
CREATE INDEX approvals_by_age ON approvals (tenant_id, requested_at);
CREATE INDEX approvals_undecided ON approvals (expires_at) WHERE status IN ('PENDING', 'APPROVED');

CREATE TABLE approval_votes (
    tenant_id   TEXT COLLATE "C" NOT NULL,
    approval_id TEXT COLLATE "C" NOT NULL,
    approver    TEXT COLLATE "C" NOT NULL,
    voted_at    BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, approval_id, approver),
    FOREIGN KEY (tenant_id, approval_id) REFERENCES approvals (tenant_id, approval_id)
);

-- Everybody who ever edited an action: none of them may be its sole approver.
CREATE TABLE approval_edits (
    tenant_id     TEXT COLLATE "C" NOT NULL,
    approval_id   TEXT COLLATE "C" NOT NULL,
    place         BIGINT NOT NULL,
    editor        TEXT COLLATE "C" NOT NULL,
    action_hash   TEXT COLLATE "C" NOT NULL,
    policy_digest TEXT COLLATE "C" NOT NULL,
    edited_at     BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, approval_id, place),
    FOREIGN KEY (tenant_id, approval_id) REFERENCES approvals (tenant_id, approval_id)
);

-- Alerts are evidence: they are kept even when their tenant is not (or not yet) registered here, so no foreign key.
CREATE TABLE alerts (
    tenant_id    TEXT COLLATE "C" NOT NULL,
    alert_id     TEXT COLLATE "C" NOT NULL,
    rule_id      TEXT COLLATE "C" NOT NULL,
    severity     TEXT COLLATE "C" NOT NULL,
    mode         TEXT COLLATE "C" NOT NULL,
    detected_at  BIGINT NOT NULL,
    body         TEXT COLLATE "C" NOT NULL,
    retracted_at BIGINT,
    incident_id  TEXT COLLATE "C",
    PRIMARY KEY (tenant_id, alert_id)
);
CREATE INDEX alerts_by_age ON alerts (tenant_id, detected_at);
CREATE INDEX alerts_by_incident ON alerts (tenant_id, incident_id, detected_at) WHERE incident_id IS NOT NULL;

CREATE TABLE incidents (
    tenant_id   TEXT COLLATE "C" NOT NULL,
    incident_id TEXT COLLATE "C" NOT NULL,
    rule_id     TEXT COLLATE "C" NOT NULL,
    entity      TEXT COLLATE "C" NOT NULL,
    severity    TEXT COLLATE "C" NOT NULL,
    title       TEXT COLLATE "C" NOT NULL,
    status      TEXT COLLATE "C" NOT NULL CHECK (status IN ('open', 'contained', 'closed')),
    opened_at   BIGINT NOT NULL,
    updated_at  BIGINT NOT NULL,
    closed_by   TEXT COLLATE "C",
    PRIMARY KEY (tenant_id, incident_id)
);
CREATE UNIQUE INDEX incidents_one_open ON incidents (tenant_id, entity, rule_id) WHERE status <> 'closed';
CREATE INDEX incidents_by_age ON incidents (tenant_id, opened_at);

CREATE TABLE incident_actions (
    tenant_id   TEXT COLLATE "C" NOT NULL,
    incident_id TEXT COLLATE "C" NOT NULL,
    place       BIGINT NOT NULL,
    -- What makes the action one: a response's command id, or null for a note.
    command_id  TEXT COLLATE "C",
    pending     BIGINT NOT NULL CHECK (pending IN (0, 1)),
    body        TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (tenant_id, incident_id, place),
    UNIQUE (tenant_id, incident_id, command_id),
    FOREIGN KEY (tenant_id, incident_id) REFERENCES incidents (tenant_id, incident_id)
);
CREATE INDEX incident_actions_pending ON incident_actions (pending) WHERE pending = 1;

-- Facts that must still become receipts. An event id is made once by control and names its tenant in the row, so it is the key.
CREATE TABLE outbox (
    place     BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id  TEXT COLLATE "C" NOT NULL UNIQUE,
    tenant_id TEXT COLLATE "C" NOT NULL REFERENCES tenants (tenant_id),
    payload   TEXT COLLATE "C" NOT NULL
);

-- Edges serve several tenants: they are the deployment's, and no tenant's. So none of these keys starts with tenant_id.

-- An invitation is used once; a new one for the same edge replaces it.
CREATE TABLE edge_invitations (
    edge_id    TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    token_hash BYTEA NOT NULL UNIQUE,
    tenants    TEXT COLLATE "C" NOT NULL,
    expires_at BIGINT NOT NULL
);

-- Every key that an edge was ever enrolled with: receipts of an earlier one must still be proved.
CREATE TABLE edge_keys (
    key_id      TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    edge_id     TEXT COLLATE "C" NOT NULL,
    public_key  TEXT COLLATE "C" NOT NULL,
    nkey        TEXT COLLATE "C" NOT NULL,
    tenants     TEXT COLLATE "C" NOT NULL,
    enrolled_at BIGINT NOT NULL,
    -- An edge that lost the answer to its enrolment may ask again, with the same invitation and the same keys, as long as the invitation ran.
    token_hash  BYTEA,
    again_until BIGINT
);
CREATE INDEX edge_keys_of_edge ON edge_keys (edge_id, enrolled_at);

-- What happened: one row an event of the bus. Evidence: kept even when its tenant is not (or not yet) registered.
CREATE TABLE history (
    place        BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id    TEXT COLLATE "C" NOT NULL,
    event_id     BYTEA NOT NULL,
    kind         TEXT COLLATE "C" NOT NULL,
    ts           BIGINT NOT NULL,
    lane         TEXT COLLATE "C",
    seq          BIGINT,
    agent_id     TEXT COLLATE "C",
    run_id       TEXT COLLATE "C",
    decision     TEXT COLLATE "C",
    receipt_hash TEXT COLLATE "C",
    bus_seq      BIGINT NOT NULL,
    wire         TEXT COLLATE "C" NOT NULL,
    -- For a history in files: who else on that machine keeps the event. Null here.
    kept_by      TEXT COLLATE "C",
    kept_at      BIGINT,
    UNIQUE (tenant_id, event_id)
);
CREATE INDEX history_by_kind ON history (tenant_id, kind, ts);
CREATE INDEX history_by_time ON history (tenant_id, ts);
CREATE INDEX history_by_run ON history (tenant_id, run_id, ts) WHERE run_id IS NOT NULL;
CREATE INDEX history_by_agent ON history (tenant_id, agent_id, ts) WHERE agent_id IS NOT NULL;
CREATE INDEX history_by_lane ON history (tenant_id, lane, seq) WHERE lane IS NOT NULL;
