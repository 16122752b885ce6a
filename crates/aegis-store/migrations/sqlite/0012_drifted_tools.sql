-- JSON: names of the tools of which a manifest said what nobody has registered. Empty where an earlier version saw that the server drifted.
ALTER TABLE mcp_servers ADD COLUMN drifted_tools TEXT NOT NULL DEFAULT '[]';
