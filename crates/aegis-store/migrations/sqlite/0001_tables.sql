-- The control plane's tables. Times are microseconds since the epoch (UTC), booleans 0 or 1, ids text, nested values JSON text.
-- Every key of tenant data starts with tenant_id; the three exceptions say why they are.

-- One counter for the whole database: every change of something an edge believes takes the next value.
CREATE TABLE revision (
    id    INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    value INTEGER NOT NULL
) STRICT;
INSERT INTO revision (id, value) VALUES (1, 0);

CREATE TABLE tenants (
    tenant_id  TEXT    NOT NULL PRIMARY KEY,
    name       TEXT    NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE settings (
    tenant_id TEXT    NOT NULL PRIMARY KEY REFERENCES tenants (tenant_id),
    body      TEXT    NOT NULL,
    revision  INTEGER NOT NULL
) STRICT;

CREATE TABLE webhook_secrets (
    tenant_id  TEXT    NOT NULL REFERENCES tenants (tenant_id),
    adapter    TEXT    NOT NULL,
    secret     TEXT    NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, adapter)
) STRICT;

-- key_hash is unique over all tenants: a presented key names its tenant, nothing else does.
CREATE TABLE api_keys (
    tenant_id  TEXT    NOT NULL REFERENCES tenants (tenant_id),
    key_id     TEXT    NOT NULL,
    key_hash   BLOB    NOT NULL UNIQUE,
    role       TEXT    NOT NULL CHECK (role IN ('admin', 'registrar', 'approver', 'analyst', 'auditor')),
    name       TEXT    NOT NULL,
    groups     TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    revoked_at INTEGER,
    PRIMARY KEY (tenant_id, key_id)
) STRICT;

CREATE TABLE agents (
    tenant_id     TEXT    NOT NULL REFERENCES tenants (tenant_id),
    id            TEXT    NOT NULL,
    agent_key     TEXT    NOT NULL,
    name          TEXT    NOT NULL,
    owner_team    TEXT,
    environment   TEXT    NOT NULL,
    risk_tier     TEXT    NOT NULL,
    trust_ceiling TEXT    NOT NULL,
    registrar     TEXT    NOT NULL,
    created_at    INTEGER NOT NULL,
    revision      INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, id),
    UNIQUE (tenant_id, agent_key)
) STRICT;
CREATE INDEX agents_by_age ON agents (tenant_id, created_at);

CREATE TABLE tools (
    tenant_id    TEXT    NOT NULL REFERENCES tenants (tenant_id),
    tool         TEXT    NOT NULL,
    name         TEXT    NOT NULL,
    default_risk TEXT    NOT NULL,
    revision     INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, tool)
) STRICT;

CREATE TABLE actions (
    tenant_id         TEXT    NOT NULL,
    tool              TEXT    NOT NULL,
    action            TEXT    NOT NULL,
    place             INTEGER NOT NULL,
    description       TEXT,
    risk              TEXT    NOT NULL,
    mutates_state     INTEGER NOT NULL CHECK (mutates_state IN (0, 1)),
    data_access       TEXT    NOT NULL,
    destination       TEXT    NOT NULL,
    target_parameter  TEXT,
    parameters        TEXT,
    approval_required INTEGER NOT NULL CHECK (approval_required IN (0, 1)),
    default_decision  TEXT    NOT NULL CHECK (default_decision IN ('policy', 'allow', 'deny')),
    PRIMARY KEY (tenant_id, tool, action),
    FOREIGN KEY (tenant_id, tool) REFERENCES tools (tenant_id, tool) ON DELETE CASCADE
) STRICT;

CREATE TABLE mcp_servers (
    tenant_id  TEXT    NOT NULL REFERENCES tenants (tenant_id),
    server_key TEXT    NOT NULL,
    name       TEXT    NOT NULL,
    url        TEXT,
    drifted    INTEGER NOT NULL CHECK (drifted IN (0, 1)),
    revision   INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, server_key)
) STRICT;

CREATE TABLE mcp_tools (
    tenant_id     TEXT    NOT NULL,
    server_key    TEXT    NOT NULL,
    name          TEXT    NOT NULL,
    place         INTEGER NOT NULL,
    manifest_hash TEXT    NOT NULL,
    PRIMARY KEY (tenant_id, server_key, name),
    FOREIGN KEY (tenant_id, server_key) REFERENCES mcp_servers (tenant_id, server_key) ON DELETE CASCADE
) STRICT;

CREATE TABLE channels (
    tenant_id    TEXT    NOT NULL REFERENCES tenants (tenant_id),
    channel      TEXT    NOT NULL,
    source_trust TEXT    NOT NULL,
    public_key   TEXT,
    revision     INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, channel)
) STRICT;

CREATE TABLE resources (
    tenant_id   TEXT    NOT NULL REFERENCES tenants (tenant_id),
    resource    TEXT    NOT NULL,
    tool        TEXT,
    visibility  TEXT    NOT NULL,
    owner       TEXT,
    observed_at INTEGER,
    revision    INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, resource)
) STRICT;

CREATE TABLE policies (
    tenant_id TEXT    NOT NULL PRIMARY KEY REFERENCES tenants (tenant_id),
    body      TEXT    NOT NULL,
    revision  INTEGER NOT NULL
) STRICT;

CREATE TABLE containment_states (
    tenant_id   TEXT    NOT NULL REFERENCES tenants (tenant_id),
    target_type TEXT    NOT NULL,
    target_id   TEXT    NOT NULL,
    revoked     INTEGER NOT NULL CHECK (revoked IN (0, 1)),
    revision    INTEGER NOT NULL,
    issued_at   INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, target_type, target_id)
) STRICT;

-- Ended holds stay: the hourly cap on automatic holds counts them, and they are the record of who held what, and why.
CREATE TABLE containment_holds (
    tenant_id   TEXT    NOT NULL,
    target_type TEXT    NOT NULL,
    target_id   TEXT    NOT NULL,
    hold_id     TEXT    NOT NULL,
    kind        TEXT    NOT NULL,
    reason      TEXT    NOT NULL,
    held_by     TEXT    NOT NULL,
    automatic   INTEGER NOT NULL CHECK (automatic IN (0, 1)),
    since       INTEGER NOT NULL,
    until       INTEGER,
    applied_at  INTEGER NOT NULL,
    ended_at    INTEGER,
    PRIMARY KEY (tenant_id, target_type, target_id, hold_id),
    FOREIGN KEY (tenant_id, target_type, target_id) REFERENCES containment_states (tenant_id, target_type, target_id)
) STRICT;
CREATE INDEX containment_holds_automatic ON containment_holds (tenant_id, applied_at) WHERE automatic = 1;

CREATE TABLE commands (
    tenant_id  TEXT    NOT NULL REFERENCES tenants (tenant_id),
    command_id TEXT    NOT NULL,
    applied_at INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, command_id)
) STRICT;

CREATE TABLE approvals (
    tenant_id        TEXT    NOT NULL REFERENCES tenants (tenant_id),
    approval_id      TEXT    NOT NULL,
    agent_id         TEXT    NOT NULL,
    status           TEXT    NOT NULL CHECK (status IN ('PENDING', 'APPROVED', 'REJECTED', 'EXPIRED', 'CONSUMED')),
    frozen           TEXT    NOT NULL,
    edited           TEXT,
    edited_by        TEXT,
    current_hash     TEXT    NOT NULL,
    policy_digest    TEXT    NOT NULL,
    approvals_needed INTEGER NOT NULL CHECK (approvals_needed >= 1),
    requested_at     INTEGER NOT NULL,
    expires_at       INTEGER NOT NULL,
    decided_at       INTEGER,
    decided_by       TEXT,
    consumed_at      INTEGER,
    PRIMARY KEY (tenant_id, approval_id)
) STRICT;
CREATE INDEX approvals_by_age ON approvals (tenant_id, requested_at);
CREATE INDEX approvals_undecided ON approvals (expires_at) WHERE status IN ('PENDING', 'APPROVED');

CREATE TABLE approval_votes (
    tenant_id   TEXT    NOT NULL,
    approval_id TEXT    NOT NULL,
    approver    TEXT    NOT NULL,
    voted_at    INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, approval_id, approver),
    FOREIGN KEY (tenant_id, approval_id) REFERENCES approvals (tenant_id, approval_id)
) STRICT;

-- Everybody who ever edited an action: none of them may be its sole approver.
CREATE TABLE approval_edits (
    tenant_id     TEXT    NOT NULL,
    approval_id   TEXT    NOT NULL,
    place         INTEGER NOT NULL,
    editor        TEXT    NOT NULL,
    action_hash   TEXT    NOT NULL,
    policy_digest TEXT    NOT NULL,
    edited_at     INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, approval_id, place),
    FOREIGN KEY (tenant_id, approval_id) REFERENCES approvals (tenant_id, approval_id)
) STRICT;

-- Alerts are evidence: they are kept even when their tenant is not (or not yet) registered here, so no foreign key.
CREATE TABLE alerts (
    tenant_id    TEXT    NOT NULL,
    alert_id     TEXT    NOT NULL,
    rule_id      TEXT    NOT NULL,
    severity     TEXT    NOT NULL,
    mode         TEXT    NOT NULL,
    detected_at  INTEGER NOT NULL,
    body         TEXT    NOT NULL,
    retracted_at INTEGER,
    incident_id  TEXT,
    PRIMARY KEY (tenant_id, alert_id)
) STRICT;
CREATE INDEX alerts_by_age ON alerts (tenant_id, detected_at);
CREATE INDEX alerts_by_incident ON alerts (tenant_id, incident_id, detected_at) WHERE incident_id IS NOT NULL;

CREATE TABLE incidents (
    tenant_id   TEXT    NOT NULL,
    incident_id TEXT    NOT NULL,
    rule_id     TEXT    NOT NULL,
    entity      TEXT    NOT NULL,
    severity    TEXT    NOT NULL,
    title       TEXT    NOT NULL,
    status      TEXT    NOT NULL CHECK (status IN ('open', 'contained', 'closed')),
    opened_at   INTEGER NOT NULL,
    updated_at  INTEGER NOT NULL,
    closed_by   TEXT,
    PRIMARY KEY (tenant_id, incident_id)
) STRICT;
CREATE UNIQUE INDEX incidents_one_open ON incidents (tenant_id, entity, rule_id) WHERE status <> 'closed';
CREATE INDEX incidents_by_age ON incidents (tenant_id, opened_at);

CREATE TABLE incident_actions (
    tenant_id   TEXT    NOT NULL,
    incident_id TEXT    NOT NULL,
    place       INTEGER NOT NULL,
    -- What makes the action one: a response's command id, or null for a note.
    command_id  TEXT,
    pending     INTEGER NOT NULL CHECK (pending IN (0, 1)),
    body        TEXT    NOT NULL,
    PRIMARY KEY (tenant_id, incident_id, place),
    UNIQUE (tenant_id, incident_id, command_id),
    FOREIGN KEY (tenant_id, incident_id) REFERENCES incidents (tenant_id, incident_id)
) STRICT;
CREATE INDEX incident_actions_pending ON incident_actions (pending) WHERE pending = 1;

-- Facts that must still become receipts. An event id is made once by control and names its tenant in the row, so it is the key.
CREATE TABLE outbox (
    place     INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id  TEXT    NOT NULL UNIQUE,
    tenant_id TEXT    NOT NULL REFERENCES tenants (tenant_id),
    payload   TEXT    NOT NULL
) STRICT;
