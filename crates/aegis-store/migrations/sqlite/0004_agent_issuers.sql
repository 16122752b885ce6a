-- Whose keys handed out tokens of an agent, and until when the last of each is valid: who holds one is on the agent's side of an approval.
CREATE TABLE agent_issuers (
    tenant_id    TEXT    NOT NULL,
    agent_id     TEXT    NOT NULL,
    key_id       TEXT    NOT NULL,
    tokens_until INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, agent_id, key_id),
    FOREIGN KEY (tenant_id, agent_id) REFERENCES agents (tenant_id, id)
) STRICT;
