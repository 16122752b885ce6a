"""A tenant of a running instance: its keys, its agents and its tools."""

from waiting import unique, wait_until

# Entries of a page: as many as the program gives at once. How often a list of several is read at most.
PAGE, MOST_LOOKS = 500, 10


class Tenant:
    """A tenant of a running instance, with a key of every role."""

    def __init__(self, aegis, name):
        self.aegis, self.name = aegis, name
        self.admin = aegis.create_key(name, "admin", "ada")
        self._keys = {}

    def key(self, role, name=None, groups=()):
        """A key of this role, made once for each name and set of groups."""
        identity = (role, name or f"{role}-person", tuple(groups))
        if identity not in self._keys:
            body = {"role": role, "name": identity[1], "groups": list(groups)}
            self._keys[identity] = self.post("/v1/keys", body).expect(201)["key"]
        return self._keys[identity]

    @property
    def registrar(self):
        return self.key("registrar")

    def get(self, path, key=None, **options):
        return self.aegis.get(path, key or self.admin, **options)

    def post(self, path, body=None, key=None, **options):
        return self.aegis.post(path, key or self.admin, body, **options)

    def put(self, path, body=None, key=None, **options):
        return self.aegis.put(path, key or self.admin, body, **options)

    def list(self, path):
        """Every entry of a list. What comes between two pages moves the others by as much, so that several count once they are the same twice."""
        entries = self._pages(path)
        for _ in range(MOST_LOOKS):
            if len(entries) < PAGE or (again := self._pages(path)) == entries:
                break
            entries = again
        return entries

    def _pages(self, path, page=PAGE):
        entries = []
        while True:
            joint = "&" if "?" in path else "?"
            part = self.get(f"{path}{joint}limit={page}&offset={len(entries)}").expect(200)
            entries += part
            if len(part) < page:
                return entries

    def register_tools(self):
        """The neutral tool `crm` and the usual actions of `github`."""
        for tool in (CRM, GITHUB):
            self.post("/v1/tools", tool, key=self.registrar).expect(201)
        return self

    def register_agent(self, **fields):
        body = {"agent_key": unique("agent"), "name": "an agent", "environment": "production", "risk_tier": "low"} | fields
        registered = self.post("/v1/agents/register", body, key=self.registrar).expect(201)
        return Agent(self, registered["id"], registered["agent_token"], body)

    def set_webhook_secret(self, secret):
        self.put("/v1/webhooks/github/secret", {"secret": secret}).expect(200)

    def settings(self, **changes):
        current = self.get("/v1/settings").expect(200)
        self.put("/v1/settings", current | changes).expect(200)

    def export(self):
        return self.aegis.export(self.name)


def until_enforced(freeze):
    """The reply of a freeze that says that it is enforced. Control waits a second for the edges; on a busy machine they may take longer, and it is asked again."""
    return wait_until("a freeze is said to be enforced", lambda: (reply := freeze())["enforced"] and reply)


class Agent:
    """A registered agent and its token."""

    def __init__(self, tenant, agent_id, token, registration):
        self.tenant, self.id, self.token, self.registration = tenant, agent_id, token, registration

    def request(self, tool="crm", action="update_customer", mutates_state=True, trust="trusted_internal_unsigned",
                resource="customer-1", parameters=None, run_id=None, **fields):
        """The body of an authorize call. `context` and `trace` in `fields` add to what stands there."""
        body = {
            "agent": {"id": self.id, "environment": "production"},
            "tool_call": {"tool": tool, "action": action, "resource": resource, "mutates_state": mutates_state,
                          "parameters": parameters if parameters is not None else {}},
            "context": {"source_trust": trust} | fields.pop("context", {}),
        }
        trace = ({"run_id": run_id} if run_id else {}) | fields.pop("trace", {})
        # A run of its own for each call that names none: the agent's implicit run would carry labels from call to call.
        body["trace"] = trace if trace else {"run_id": unique("run")}
        return body | fields

    def until_tools_are_known(self):
        """Control waits a second for its edge to apply what was registered, and answers all the same; behind a clock that a test moved on, the edge's
        feed is old for a moment."""
        wait_until("the edge knows the tools", lambda: self.authorize(dry_run=True)["decision"] == "allow")
        return self

    def freeze(self, **body):
        return self.tenant.post(f"/v1/agents/{self.id}/freeze", {"reason": "a test"} | body).expect(200)

    def send(self, body, headers=None):
        return self.tenant.aegis.post("/v1/authorize", self.token, body, headers)

    def authorize(self, **options):
        """The decision on a call that must get one."""
        return self.send(self.request(**options)).expect(200)

    def read(self, **options):
        return self.authorize(**({"action": "read_customer", "mutates_state": False} | options))


def _action(name, risk, mutates_state, parameters=(), **fields):
    properties = {parameter: {"type": kind} for parameter, kind in parameters}
    return {"action": name, "risk": risk, "mutates_state": mutates_state, "approval_required": False, "default_decision": "policy",
            "parameters": {"type": "object", "properties": properties}} | fields


CRM = {
    "tool": "crm", "name": "CRM", "default_risk": "medium",
    "actions": [
        _action("read_customer", "low", False, [("id", "string")], data_access="internal"),
        _action("read_card_number", "low", False, [("id", "string")], data_access="sensitive"),
        _action("update_customer", "medium", True, [("id", "string"), ("email", "string"), ("amount", "integer")]),
        _action("export_customers", "high", False, [("to", "string")], destination="external", target_parameter="to"),
        _action("delete_all", "critical", True),
        _action("format_disk", "high", True, default_decision="deny"),
        _action("refund", "medium", True, [("amount", "integer")], approval_required=True),
    ],
}

_REPOSITORIES = [(name, "string") for name in ("source_repository", "head_repository", "target_repository")]

GITHUB = {
    "tool": "github", "name": "GitHub", "default_risk": "medium",
    "actions": [
        _action("get_file_contents", "low", False, [("path", "string"), ("ref", "string"), *_REPOSITORIES], data_access="internal"),
        _action("get_issue", "low", False, [("issue_number", "integer"), *_REPOSITORIES], data_access="internal"),
        _action("create_pull_request", "medium", True,
                [("title", "string"), ("body", "string"), ("head", "string"), ("base", "string"), *_REPOSITORIES], destination="external"),
        _action("create_issue_comment", "medium", True, [("issue_number", "integer"), ("body", "string"), *_REPOSITORIES],
                destination="external"),
        _action("merge_pull_request", "high", True, [("pr_number", "integer"), ("base_branch", "string"), *_REPOSITORIES],
                destination="external"),
    ],
}
