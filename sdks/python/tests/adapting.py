"""What the tests of the adapters share."""

import aegisagent

CALL = {"customer": "c-1", "note": "hello"}


def client_of(edge, kind):
    return (aegisagent.Client if kind == "blocking" else aegisagent.AsyncClient)(edge.url, "x" * 40)


def asked(edge):
    return [
        (one["tool_call"]["tool"], one["tool_call"]["action"], one["tool_call"]["mutates_state"], one["tool_call"]["resource"])
        for one in edge.sent("authorize")
    ]
