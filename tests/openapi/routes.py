"""The routes that the program has, read from its source, and those that docs/api.md names."""

import re

from document import REPOSITORY

CRATES = REPOSITORY / "crates"
ROLE = re.compile(r"\b(Admin|Registrar|Approver|Analyst|Auditor)\b")


def of_source():
    """{(method, path): roles}: the control plane's table, and the routers of edge, ingest and metrics."""
    text = (CRATES / "aegis-control/src/routes.rs").read_text()
    table = re.search(r"pub static ROUTES: &\[Route\] = &\[(.*?)^\];", text, re.MULTILINE | re.DOTALL)[1]
    constants = dict(re.findall(r"^const (\w+): Access = (.*?);", text, re.MULTILINE))
    found = {}
    for method, path, access in re.findall(r'(get|post|put|delete)\("([^"]+)",\s*(.*?),\s*Op::', table):
        found[method.upper(), path] = roles_of(constants.get(access, access))
    for source, roles in (("aegis-edge/src/http.rs", {"agent"}), ("aegis-ingest/src/webhook.rs", {"anyone"}), ("aegis/src/exposition.rs", {"anyone"})):
        text = (CRATES / source).read_text()
        named = dict(re.findall(r'const (\w+): &str = "([^"]+)";', text))
        for path, name, method in re.findall(r'\.route\((?:"([^"]+)"|(\w+)), (get|post)\(', text):
            found[method.upper(), path or named[name]] = roles
    return found


def roles_of(access):
    named = {role.lower() for role in ROLE.findall(access)}
    if access.startswith("Access::AgentOr"):
        return named | {"agent"}
    return {"Access::Public": {"anyone"}, "Access::Invitation": {"invitation"}}.get(access, named)


def of_api_page():
    """{(method, path)} that docs/api.md names; `…/restore` stands for its neighbour's path with another end."""
    text = (REPOSITORY / "docs/api.md").read_text(encoding="utf-8")
    found = set(re.findall(r"`(GET|POST|PUT|DELETE) (/[^`\s?]*)", text))
    for method, before, end in re.findall(r"`(\w+) (/[^`\s?]*)`, `…(/[^`\s]*)`", text):
        found.add((method, before.rsplit("/", 1)[0] + end))
    return found
