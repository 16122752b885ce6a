"""What somebody changes while a call waits (the library's functions, the function's defaults, the parameters that `resource` is shown) changes neither
what was hashed nor what runs; what changes the hash itself is a denial."""

import hashlib
import json

import pytest
import rfc8785

import aegisagent

GIVEN = {"order": "order-7", "amount": 5, "tags": ["b", "a"]}
# One for all approvals and all hashes of these tests.
REAL = {"loads": json.loads, "dumps": json.dumps, "canonical": rfc8785.dumps, "sha256": hashlib.sha256}


def swapped(value):
    if type(value) is dict:
        return {name: 1000 if name == "amount" else swapped(one) for name, one in value.items()}
    return [swapped(one) for one in value] if type(value) is list else value


def only_of_frozen_texts(text):
    """The fake edge reads whole requests; this is about what an SDK has frozen."""
    return type(text) is str and text.startswith('{"tool":')


REPLACED = {
    "json.loads": (
        json,
        "loads",
        lambda text, *a, **k: (swapped if only_of_frozen_texts(text) else lambda v: v)(REAL["loads"](text, *a, **k)),
    ),
    "json.dumps": (json, "dumps", lambda value, *a, **k: REAL["dumps"](swapped(value) if "tool" in value else value, *a, **k)),
}


@pytest.mark.feature("protect-freeze")
@pytest.mark.parametrize("when", ["authorize", "consume"])
@pytest.mark.parametrize("name", REPLACED)
def test_what_is_replaced_while_a_call_waits_changes_nothing(edge, mode, monkeypatch, name, when):
    seen = []
    edge.decision = "require_approval"
    edge.before[when] = lambda: monkeypatch.setattr(*REPLACED[name])

    def refund(order, amount, tags):
        seen.append({"order": order, "amount": amount, "tags": tags})

    mode.call(edge.url, refund, **GIVEN)
    monkeypatch.undo()
    assert seen == [GIVEN]
    assert [asked["tool_call"]["parameters"] for asked in edge.sent("authorize")] == [GIVEN]


@pytest.mark.feature("protect-freeze")
@pytest.mark.parametrize("name", REPLACED)
def test_what_was_replaced_after_this_package_was_loaded_changes_nothing(edge, mode, monkeypatch, name):
    seen = []
    with monkeypatch.context() as replaced:
        replaced.setattr(*REPLACED[name])
        mode.call(edge.url, lambda order, amount, tags: seen.append({"order": order, "amount": amount, "tags": tags}), **GIVEN)
    assert seen == [GIVEN]
    assert [asked["tool_call"]["parameters"] for asked in edge.sent("authorize")] == [GIVEN]


@pytest.mark.feature("hostile-hash")
@pytest.mark.parametrize(
    ("module", "name", "other"),
    [
        (rfc8785, "dumps", lambda value: REAL["canonical"](swapped(value))),
        (hashlib, "sha256", lambda data=b"", **how: REAL["sha256"](data + b" ", **how)),
    ],
    ids=["rfc8785.dumps", "hashlib.sha256"],
)
def test_a_hash_that_is_made_otherwise_is_a_denial(edge, mode, recorder, monkeypatch, module, name, other):
    decided = []
    edge.replace["authorize"] = lambda honest: decided.append(honest[1]["action_hash"]) or honest

    def honestly(path, body, authorize=edge._authorize):
        with monkeypatch.context() as restored:
            restored.setattr(module, name, REAL["canonical" if module is rfc8785 else name])
            return authorize(path, body)

    edge._authorize = honestly
    with monkeypatch.context() as replaced:
        replaced.setattr(module, name, other)
        with pytest.raises(aegisagent.DeniedUnverified) as denied:
            mode.call(edge.url, recorder, "a")
    assert (denied.value.code, recorder.calls, len(decided)) == ("action_hash_mismatch", [], 1)


@pytest.mark.feature("protect-freeze")
def test_defaults_that_the_function_is_given_later_are_not_what_runs(edge, mode):
    seen = []

    def refund(order, amount=5, *, tags=("later",)):
        seen.append((order, amount, tags))

    refund.__kwdefaults__["tags"] = ["a"]

    def work(protect):
        protected = protect(refund)
        refund.__defaults__ = (1000,)
        refund.__kwdefaults__["tags"] = ["b"]
        protected("order-7")

    mode.run(edge.url, work)
    assert seen == [("order-7", 5, ["a"])]
    assert edge.sent("authorize")[0]["tool_call"]["parameters"] == {"order": "order-7", "amount": 5, "tags": ["a"]}


@pytest.mark.feature("protect-freeze")
def test_a_resource_that_changes_what_it_is_shown_changes_nothing(edge, mode):
    seen = []

    def resource(parameters):
        parameters["amount"] = 1000
        parameters["tags"].append("evil")
        return parameters["order"]

    mode.call(
        edge.url,
        lambda order, amount, tags: seen.append({"order": order, "amount": amount, "tags": tags}),
        how={"resource": resource},
        **GIVEN,
    )
    assert seen == [GIVEN]
    (asked,) = edge.sent("authorize")
    assert (asked["tool_call"]["resource"], asked["tool_call"]["parameters"]) == ("order-7", GIVEN)


class Changing(dict):
    """Shows one thing when it is read first and another after that."""

    def __iter__(self):
        self["amount"] = 1000
        return super().__iter__()

    def items(self):
        return {"amount": 1}.items()

    def __eq__(self, _other):
        return True

    __hash__ = None


class Many(list):
    def __iter__(self):
        return iter(["evil"])

    def __len__(self):
        return 0


class Word(str):
    def __eq__(self, _other):
        return True

    def __hash__(self):
        return hash("note")

    def __str__(self):
        return "evil"


class Number(int):
    def __repr__(self):
        return "1000"


class Real(float):
    def __repr__(self):
        return "1000.0"


HOSTILE = {
    "a dict": Changing(amount=5), "a list": Many(["a"]), "a text": Word("a"), "a number": Number(5), "a float": Real(5.0),
    "a key": {Word("amount"): 5}, "inside": [{"a": [Changing(amount=5)]}], "True by equality": Number(1),
}  # fmt: skip


@pytest.mark.feature("protect-unfreezable")
@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_subtype_that_could_show_two_things_is_a_denial_and_nothing_is_sent(edge, mode, recorder, value):
    with pytest.raises(aegisagent.DeniedUnfreezable) as denied:
        mode.call(edge.url, recorder, value)
    assert (denied.value.code, recorder.calls, edge.seen) == ("unsupported_type", [], [])
