"""The models against docs/openapi.yaml: every field is one of the document's, with its type, and every answer of the document can be read."""

import dataclasses
import typing

import pytest
import yaml
from where import REPOSITORY

from aegisagent import BadReply, Secret, models

SCHEMAS = yaml.safe_load((REPOSITORY / "docs/openapi.yaml").read_text(encoding="utf-8"))["components"]["schemas"]
OF = {
    models.ToolCall: "ToolCall", models.ReceiptRef: "ReceiptRef", models.ApprovalRef: "ApprovalRef", models.Decision: "AuthorizeResponse",
    models.Approval: "Approval", models.Consumed: "Consumed", models.Outcome: "Outcome", models.Registration: "RegisteredAgent",
    models.Hold: "Hold", models.Containment: "Containment", models.Edges: "Containment.edges", models.ReceiptVerdict: "ReceiptVerdict",
}  # fmt: skip
JSON_TYPES = {str: "string", bool: "boolean", int: "integer", dict: "object", tuple: "array", Secret: "string"}
# Null in lists, which have no word on enforcement; and from servers that do not count the seconds.
LOOSER = {
    ("Containment", "enforced"),
    ("Containment", "edges"),
    ("Containment.edges", "since"),
    ("Approval", "expires_in"),
    ("ReceiptVerdict", "same_id"),
    ("ApprovalRef", "expires_in"),
}


def properties(schema):
    """Name → schema, and the required names, of a schema with all of its parts."""
    if "$ref" in schema:
        return properties(SCHEMAS[schema["$ref"].rsplit("/", 1)[1]])
    found, required = dict(schema.get("properties", {})), set(schema.get("required", []))
    for part in schema.get("allOf", []):
        more, needed = properties(part)
        found |= more
        required |= needed
    return found, required


def schema_of(name):
    """A schema by its name, or one within it: `Name.property`."""
    name, *within = name.split(".")
    schema = SCHEMAS[name]
    for member in within:
        schema = properties(schema)[0][member]
    return schema


def types_of(schema):
    if "$ref" in schema:
        return types_of(SCHEMAS[schema["$ref"].rsplit("/", 1)[1]])
    if "anyOf" in schema:
        return set().union(*map(types_of, schema["anyOf"]))
    if "type" not in schema:
        return {"object"}
    return set(schema["type"]) if isinstance(schema["type"], list) else {schema["type"]}


def types_in(hint):
    arguments = typing.get_args(hint) if typing.get_origin(hint) not in (tuple, dict) else (hint,)
    found = set()
    for one in arguments or (hint,):
        kind = typing.get_origin(one) or one
        found.add("null" if kind is type(None) else JSON_TYPES.get(kind, "object"))
    return found


@pytest.mark.feature("models-openapi")
@pytest.mark.parametrize("model", OF, ids=OF.values())
def test_a_model_s_fields_are_the_document_s(model):
    described, required = properties(schema_of(OF[model]))
    hints = typing.get_type_hints(model)
    assert {field.name for field in dataclasses.fields(model)} == set(described), "both ways"
    for field in dataclasses.fields(model):
        assert field.name in described, f"{OF[model]} has no {field.name}"
        expected = types_of(described[field.name]) | ({"null"} if (OF[model], field.name) in LOOSER else set())
        assert types_in(hints[field.name]) == expected, f"{OF[model]}.{field.name}"
        assert field.name in required or "null" in expected


@pytest.mark.feature("models-openapi")
def test_a_field_of_another_type_is_a_bad_reply_and_an_unknown_one_is_ignored():
    good = {"status": "consumed", "approval_id": "i", "action_hash": "ab" * 32}
    assert models.Consumed.read(good | {"new": 1}).approval_id == "i"
    for name in good:
        for bad in (None, 1, True, [], {}, "AB" * 32 if name == "action_hash" else 7):
            with pytest.raises(BadReply):
                models.Consumed.read(good | {name: bad})
    for bad in (None, [], "x", 1):
        with pytest.raises(BadReply):
            models.Consumed.read(bad)


@pytest.mark.feature("models-openapi")
def test_what_may_be_null_may_not_be_missing_unless_the_document_says_so():
    call = {"tool": "t", "action": "a", "mutates_state": True, "parameters": {}}
    assert models.ToolCall.read(models.Fields(call, "c")) == models.ToolCall.read(models.Fields(call | {"resource": None}, "c"))
    outcome = {"decision_id": "d", "outcome_id": "o", "status": "ok", "violation": None, "receipt_hash": "ab" * 32}
    hold = {"hold_id": "h", "kind": "k", "reason": "r", "by": "b", "since": "s", "until": None}
    verdict = {"receipt_id": "r", "receipt_hash": None, "lane": None, "seq": None, "verdict": "v", "checks": {}, "failure": None}
    for read, good in (
        (models.Outcome.read, outcome), (models.Hold.read, hold), (models.ReceiptVerdict.read, verdict),
    ):  # fmt: skip
        assert read(good)
        for name in good:
            with pytest.raises(BadReply):
                read({key: value for key, value in good.items() if key != name})


@pytest.mark.feature("models-openapi")
def test_every_model_of_a_reply_is_looked_at():
    defined = {value for value in vars(models).values() if dataclasses.is_dataclass(value)}
    assert defined == set(OF)
