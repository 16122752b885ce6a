"""Plain functions, each protected as the action of its name."""

import pytest
from adapting import asked, client_of

import aegisagent
from aegisagent.adapters import protect_functions


@pytest.mark.feature("adapter-functions")
def test_plain_functions_become_actions_by_name(edge, ran):
    def read(id):
        return ran.append(("read", id))

    def update(id, note):
        return ran.append(("update", id, note))

    with client_of(edge, "blocking") as client:
        tools = protect_functions(client, [read, update], tool="crm", reads=["read"], resource=lambda action, p: f"{action}:{p['id']}")
        tools["read"]("1")
        tools["update"]("2", note="n")
        edge.decision = "deny"
        with pytest.raises(aegisagent.DeniedByPolicy):
            tools["update"]("3", "n")
        for functions, reads in (({"read": read}, ["raed"]), ([read, lambda: 1, lambda: 2], []), ([read, read], ["read"])):
            with pytest.raises(aegisagent.ConfigError):
                protect_functions(client, functions, tool="crm", reads=reads)
    assert ran == [("read", "1"), ("update", "2", "n")]
    assert asked(edge)[:2] == [("crm", "read", False, "read:1"), ("crm", "update", True, "update:2")]
