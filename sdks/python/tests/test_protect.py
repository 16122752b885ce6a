"""`protect`, with an honest server: what is hashed is what runs, once, and what came of it is reported."""

import concurrent.futures
import dataclasses
import inspect
import threading
import time
import tracemalloc

import anyio
import pytest
from conftest import as_async

import aegisagent
from aegisagent import canon


def hash_of(parameters, resource="customer-1"):
    return canon.action_hash("crm", "update_note", resource, True, parameters)


@pytest.mark.feature("protect-allow")
def test_an_allowed_action_runs_and_is_reported(edge, mode, recorder):
    assert mode.call(edge.url, recorder, "hello") == "done"
    assert recorder.calls == [{"note": "hello", "amount": 1}]
    (asked,) = edge.sent("authorize")
    assert asked["tool_call"]["parameters"] == {"note": "hello", "amount": 1}
    (outcome,) = edge.sent("outcome")
    key = outcome.pop("request_id")
    assert outcome == {"status": "ok", "executed_hash": hash_of({"note": "hello", "amount": 1})}
    assert len(key) == 36
    assert key != asked["request_id"], "each request has a key of its own"


@pytest.mark.feature("protect-freeze")
def test_what_runs_is_what_was_asked_for_whatever_becomes_of_the_arguments(edge, mode):
    note, seen = {"text": ["a"]}, []
    edge.decision, edge.statuses = "require_approval", [404, "PENDING", "APPROVED"]
    edge.before["authorize"] = lambda: note["text"].append("b")
    edge.before["consume"] = lambda: note.update(text="c")
    mode.call(edge.url, lambda note: seen.append(note), note)
    assert seen == [{"text": ["a"]}]
    assert seen[0] is not note
    assert [consume["claimed_action_hash"] for consume in edge.sent("consume")] == [hash_of({"note": {"text": ["a"]}})]


@pytest.mark.feature("protect-binding")
def test_positional_keyword_and_default_arguments_are_one_action(edge, mode):
    def function(first, /, second, *rest, third=3, **more):
        return [first, second, list(rest), third, more]

    def work(protect):
        protected = protect(function)
        return [
            protected(1, 2),
            protected(1, second=2),
            protected(1, 2, third=3),
            protected(1, 2, 7, z=1, a=2),
            protected(1, 2, 7, a=2, z=1),
        ]

    results = mode.run(edge.url, work)
    assert results == [[1, 2, [], 3, {}]] * 3 + [[1, 2, [7], 3, {"z": 1, "a": 2}]] * 2
    hashes = [canon.sha256_hex(canon.canonicalize_value(asked["tool_call"])) for asked in edge.sent("authorize")]
    assert hashes[0] == hashes[1] == hashes[2] != hashes[3] == hashes[4]


@pytest.mark.feature("protect-binding")
def test_a_mutable_default_is_the_same_at_every_call(edge, mode):
    def function(item, seen=[]):  # noqa: B006
        seen.append(item)
        return seen

    assert mode.run(edge.url, lambda protect: [protect(function)(1), protect(function)(2)]) == [[1], [2]]
    assert [asked["tool_call"]["parameters"]["seen"] for asked in edge.sent("authorize")] == [[], []]

    def work(protect):
        protected = protect(function)
        function.__defaults__[0].append("from elsewhere")
        return protected(3)

    assert mode.run(edge.url, work) == [3]


class Text(str):
    def __str__(self):
        return "harmless"

    __repr__ = __str__


class Mapping(dict):
    def items(self):
        return [("harmless", 1)]


class Number(int):
    def __abs__(self):
        return 1


@pytest.mark.feature("protect-unfreezable")
@pytest.mark.parametrize(
    ("value", "code"),
    [
        (float("nan"), "non_finite_number"), (float("inf"), "non_finite_number"), (2**53, "integer_out_of_range"),
        (-(2**60), "integer_out_of_range"), ("\ud800", "lone_surrogate"), ({"\udfff": 1}, "lone_surrogate"), (b"bytes", "unsupported_type"),
        ((1, 2), "unsupported_type"), ({1, 2}, "unsupported_type"), ({1: 2}, "unsupported_type"), (object(), "unsupported_type"),
        (__import__("datetime").datetime(2026, 1, 1), "unsupported_type"), (__import__("decimal").Decimal("1"), "unsupported_type"),
        ((n for n in [1]), "unsupported_type"), (iter([1]), "unsupported_type"), (Text("rm -rf"), "unsupported_type"),
        (Mapping(a=1), "unsupported_type"), (Number(7), "unsupported_type"), ([Text("x")], "unsupported_type"), (1j, "unsupported_type"),
        ("x" * (1 << 20), "size_exceeded"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_an_argument_that_is_not_plain_json_is_a_denial_and_nothing_is_sent(edge, mode, recorder, value, code):
    with pytest.raises(aegisagent.DeniedUnfreezable) as denied:
        mode.call(edge.url, recorder, value)
    assert denied.value.code == code
    assert (recorder.calls, edge.seen) == ([], [])
    assert "rm -rf" not in str(denied.value)


@pytest.mark.feature("protect-unfreezable")
def test_arguments_nested_too_deeply_or_in_a_circle_are_a_denial(edge, mode, recorder):
    circle = []
    circle.append(circle)
    deep = "x"
    for _ in range(127):
        deep = [deep]
    for value in (circle, deep):
        with pytest.raises(aegisagent.DeniedUnfreezable, match="depth_exceeded"):
            mode.call(edge.url, recorder, value)
    assert recorder.calls == []
    mode.call(edge.url, recorder, deep[0])
    assert recorder.calls == [{"note": deep[0], "amount": 1}]


def many_times(levels, thing="x", pair=lambda one: [one, one]):
    """What refers to one thing 2^levels times."""
    for _ in range(levels):
        thing = pair(thing)
    return thing


BOMBS = {
    "arrays": many_times(40), "objects": many_times(40, pair=lambda one: {"a": one, "b": one}), "empty arrays": many_times(40, []),
    "texts": [["x" * 1000] * 1000] * 1000, "nulls": [None] * (1 << 22),
}  # fmt: skip


@pytest.mark.feature("protect-unfreezable")
@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_what_refers_to_one_thing_many_times_is_refused_soon_and_without_memory(edge, bomb):
    began = time.process_time()
    with aegisagent.Client(edge.url, "x" * 40) as client:
        protected = aegisagent.protect(client, tool="crm", action="a")(lambda *rest, **more: 1)
        for call in (lambda: protected(bomb), lambda: protected(more=bomb)):
            with pytest.raises(aegisagent.DeniedUnfreezable) as denied:
                call()
            assert denied.value.code == "size_exceeded"
    with pytest.raises(aegisagent.CanonError, match="size_exceeded"):
        canon.canonicalize_value(bomb)
    assert time.process_time() - began < 20
    assert edge.seen == []
    tracemalloc.start()
    with pytest.raises(aegisagent.CanonError, match="size_exceeded"):
        canon.canonicalize_value(bomb, max_bytes=1 << 14)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


@pytest.mark.feature("protect-unfreezable")
def test_many_arguments_have_one_limit_together(edge):
    half = "x" * (1 << 19)
    with aegisagent.Client(edge.url, "x" * 40) as client:
        for function, given in ((lambda a, b: 1, {"a": half, "b": half}), (lambda **more: 1, {str(n): half for n in range(1000)})):
            with pytest.raises(aegisagent.DeniedUnfreezable, match="size_exceeded"):
                aegisagent.protect(client, tool="crm", action="a")(function)(**given)
        with pytest.raises(aegisagent.ConfigError, match="size_exceeded"):
            aegisagent.protect(client, tool="crm", action="a")(lambda x=many_times(40): 1)
        aegisagent.protect(client, tool="crm", action="a")(lambda a, b: 1)(many_times(10), half)
    assert len(edge.sent("authorize")) == 1


@pytest.mark.feature("protect-outcome")
def test_an_output_that_refers_to_one_thing_many_times_is_not_reported(edge, mode):
    result = mode.call(edge.url, lambda: many_times(40), how={"report_output": True})
    assert len(result) == 2
    assert [(outcome["status"], outcome.get("output")) for outcome in edge.sent("outcome")] == [("ok", None)]


@pytest.mark.feature("protect-freeze")
def test_numbers_and_texts_arrive_as_they_were_given(edge, mode):
    values = [0, -1, 1.0, -0.0, 0.1, 1e20, 1e-7, 2**53 - 1, True, None, "é", "😀", "\u2028", "a\x00b", "", {"": [{}]}]
    seen = mode.call(edge.url, lambda values: list(values), values)
    assert [(type(value), repr(value)) for value in seen] == [(type(value), repr(value)) for value in values]


@pytest.mark.feature("protect-outcome")
def test_an_exception_of_the_function_is_the_caller_s_and_an_error(edge, mode):
    def function():
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        mode.call(edge.url, function)
    assert [outcome["status"] for outcome in edge.sent("outcome")] == ["error"]


@pytest.mark.feature("protect-outcome")
def test_an_outcome_that_cannot_be_reported_changes_no_result(edge, mode, recorder, caplog):
    for bad in ((500, {}), (200, b"garbage"), (409, {"error": {"code": "x", "message": "y"}})):
        edge.replace["outcome"] = bad
        assert mode.call(edge.url, recorder, "a") == "done"
    assert len(recorder.calls) == 3
    assert caplog.text.count("is not reported") == 3


@pytest.mark.feature("protect-outcome")
def test_an_output_is_reported_only_where_that_was_asked_for_and_it_is_json(edge, mode):
    def work(protect):
        protect(lambda: {"rows": 1})()
        protect(lambda: {"rows": 1}, report_output=True)()
        protect(lambda: object(), report_output=True)()

    mode.run(edge.url, work)
    assert [outcome.get("output") for outcome in edge.sent("outcome")] == [None, {"rows": 1}, None]


@pytest.mark.feature("protect-outcome")
def test_a_result_that_does_its_work_later_is_not_handed_out(edge, mode):
    for lazy in (lambda: (n for n in [1]), lambda: map(print, [1]), lambda: iter([1])):
        with pytest.raises(aegisagent.LazyResult):
            mode.call(edge.url, lazy)
    assert [outcome["status"] for outcome in edge.sent("outcome")] == ["ambiguous"] * 3


@dataclasses.dataclass
class Page:
    rows: object


class Stream:
    def __aiter__(self):
        return self


@pytest.mark.feature("protect-outcome")
def test_a_result_that_holds_what_does_its_work_later_is_not_handed_out(edge, mode):
    ran, pending = [], concurrent.futures.Future()

    def rows():
        ran.append(1)
        yield 1

    makers = [
        lambda: [rows()], lambda: (1, [{"rows": rows()}]), lambda: {"a": {"b": map(ran.append, [1])}}, lambda: Page(rows()), lambda: [Page([rows()])],
        lambda: pending, lambda: {"later": pending}, lambda: {pending}, Stream, lambda: [coroutine()],
    ]  # fmt: skip
    for lazy in makers:
        with pytest.raises(aegisagent.LazyResult):
            mode.call(edge.url, lazy)
    assert [outcome["status"] for outcome in edge.sent("outcome")] == ["ambiguous"] * len(makers)
    assert ran == []
    circle = [Page(None), {"a": [1, "b", None]}, range(3), {1, 2}, Page]
    circle[0].rows = circle
    assert mode.call(edge.url, lambda: circle) is circle
    assert len(mode.call(edge.url, lambda: many_times(40))) == 2


@pytest.mark.feature("protect-approval")
def test_an_approved_action_is_consumed_and_runs(edge, mode, recorder):
    told = []
    edge.decision, edge.statuses = "require_approval", [404, 404, "PENDING", "APPROVED"]
    assert mode.call(edge.url, recorder, "a", how={"on_pending": told.append}) == "done"
    assert [name for name, _, _ in edge.seen] == ["authorize", "approval", "approval", "approval", "approval", "consume", "outcome"]
    assert (told[0].approver_group, told[0].action_hash) == ("release", hash_of({"note": "a", "amount": 1}))


@pytest.mark.feature("protect-approval")
@pytest.mark.parametrize("status", ["REJECTED", "EXPIRED", "CONSUMED"])
def test_an_approval_that_ended_otherwise_is_a_denial(edge, mode, recorder, status):
    edge.decision, edge.statuses = "require_approval", ["PENDING", status]
    with pytest.raises(aegisagent.DeniedByApprover) as denied:
        mode.call(edge.url, recorder, "a")
    assert denied.value.code == f"approval_{status.lower()}"
    assert denied.value.decision_id
    assert denied.value.approval_id
    assert (recorder.calls, edge.sent("consume")) == ([], [])


@pytest.mark.feature("protect-approval")
def test_nobody_who_decides_in_time_is_a_denial(edge, mode, recorder):
    edge.decision, edge.statuses = "require_approval", ["PENDING"]
    for timeout_s in (0, 0.6):
        with pytest.raises(aegisagent.DeniedByApprover, match="approval_timeout"):
            mode.call(edge.url, recorder, "a", how={"approval_timeout_s": timeout_s})
    assert recorder.calls == []


def edit_of(**changes):
    call = {
        "tool": "crm",
        "action": "update_note",
        "resource": "customer-1",
        "mutates_state": True,
        "parameters": {"note": "b", "amount": 2},
    }
    return call | changes


@pytest.mark.feature("protect-edit")
def test_an_edited_action_runs_as_it_was_edited_if_the_caller_opted_in(edge, mode, recorder):
    edge.decision, edge.edited = "require_approval", edit_of()
    mode.call(edge.url, recorder, "a", how={"accept_edits": True})
    assert recorder.calls == [{"note": "b", "amount": 2}]
    assert [consume["claimed_action_hash"] for consume in edge.sent("consume")] == [hash_of({"note": "b", "amount": 2})]
    assert [outcome["executed_hash"] for outcome in edge.sent("outcome")] == [hash_of({"note": "b", "amount": 2})]


@pytest.mark.feature("protect-edit")
def test_an_edited_action_is_a_denial_otherwise(edge, mode, recorder):
    edge.decision, edge.edited = "require_approval", edit_of()
    with pytest.raises(aegisagent.DeniedByApprover, match="approval_edited"):
        mode.call(edge.url, recorder, "a")
    assert (recorder.calls, edge.sent("consume")) == ([], [])


@pytest.mark.feature("protect-edit")
@pytest.mark.parametrize(
    "edited",
    [
        edit_of(tool="shell"), edit_of(action="delete"), edit_of(mutates_state=False), edit_of(resource="customer-2"),
        edit_of(parameters={"note": "b"}), edit_of(parameters={"note": "b", "amount": 2, "force": True}), edit_of(parameters={}),
    ],
    ids=["tool", "action", "mutates_state", "resource", "fewer", "more", "none"],
)  # fmt: skip
def test_an_edit_that_this_function_cannot_run_is_a_denial_and_consumes_nothing(edge, mode, recorder, edited):
    edge.decision, edge.edited = "require_approval", edited
    with pytest.raises(aegisagent.DeniedByApprover, match="approval_edited"):
        mode.call(edge.url, recorder, "a", how={"accept_edits": True})
    assert (recorder.calls, edge.sent("consume")) == ([], [])


@pytest.mark.feature("protect-edit")
def test_an_edit_of_gathered_arguments_must_still_fit(edge, mode):
    edge.decision, edge.edited = "require_approval", edit_of(parameters={"rest": 7})
    with pytest.raises(aegisagent.DeniedByApprover, match="approval_edited"):
        mode.call(edge.url, lambda *rest: rest, 1, how={"accept_edits": True})
    assert edge.sent("consume") == []


@pytest.mark.feature("protect-edit")
def test_an_edit_says_each_argument_once(edge, mode):
    """Otherwise policy and approver would see one amount, and another would run."""
    seen = []

    def function(note, /, amount, *, limit=1, db=None, **more):
        seen.append((note, amount, limit, db, more))

    how = {"accept_edits": True, "passed_on": ["db"]}
    edge.decision = "require_approval"
    for name in ("amount", "limit", "db"):
        edge.edited = edit_of(parameters={"note": "b", "amount": 2, "limit": 1, "more": {name: 500}})
        with pytest.raises(aegisagent.DeniedByApprover, match="approval_edited"):
            mode.call(edge.url, function, "a", 1, how=how)
    assert (seen, edge.sent("consume")) == ([], [])
    edge.edited = edit_of(parameters={"note": "b", "amount": 2, "limit": 1, "more": {"note": "beside", "more": 3}})
    mode.call(edge.url, function, "a", 1, how=how)
    assert seen == [("b", 2, 1, None, {"note": "beside", "more": 3})]


@pytest.mark.feature("protect-edit")
def test_a_resource_that_follows_from_the_parameters_follows_the_edit(edge, mode, recorder):
    how = {"accept_edits": True, "resource": lambda parameters: f"customer-{parameters['amount']}"}
    edge.decision, edge.edited = "require_approval", edit_of(resource="customer-2")
    mode.call(edge.url, recorder, "a", how=how)
    assert recorder.calls == [{"note": "b", "amount": 2}]
    # Another one, and one that cannot be told.
    for edited in (edit_of(resource="customer-3"), edit_of(parameters={"note": "b", "amount": "two"})):
        edge.edited = edited
        with pytest.raises(aegisagent.DeniedByApprover, match="approval_edited"):
            mode.call(edge.url, recorder, "a", how=how | {"resource": lambda parameters: f"customer-{parameters['amount'] + 0}"})
    assert len(edge.sent("consume")) == 1


@pytest.mark.feature("protect-allow")
def test_what_is_passed_on_is_neither_sent_nor_copied(edge, mode):
    connection = object()

    def function(db, note, options=None):
        return db, note, options

    assert mode.call(edge.url, function, connection, "a", how={"passed_on": ["db", "options"]}) == (connection, "a", None)
    assert edge.sent("authorize")[0]["tool_call"]["parameters"] == {"note": "a"}


def generator():
    yield 1


async def async_generator():
    yield 1


async def coroutine():
    pass


class Caller:
    async def __call__(self):
        pass


@pytest.mark.feature("protect-config")
@pytest.mark.parametrize(
    ("function", "how"),
    [
        (generator, {}), (lambda self: 1, {}), (lambda cls, x: 1, {}), (lambda x=(1,): 1, {}), (lambda x=object(): 1, {}),
        (lambda x: 1, {"passed_on": ["y"]}), (coroutine, {}), (Caller(), {}), (async_generator, {}), (print, {"tool": ""}), (len, {"action": None}),
        (lambda: 1, {"fail_open_reads": True}), (lambda: 1, {"fail_open_reads": True, "mutates_state": False}),
        (lambda: 1, {"fail_open_reads": True, "mutates_state": False, "risk": "medium"}),
        (lambda: 1, {"fail_open_reads": True, "mutates_state": False, "risk": "low", "contains_sensitive_data": True}),
        (lambda: 1, {"fail_open_reads": True, "risk": "low"}), (lambda: 1, {"accept_edits": "no"}), (lambda: 1, {"mutates_state": 0}),
        (lambda: 1, {"mutates_state": None}), (lambda: 1, {"risk": "none"}), (lambda: 1, {"approval_timeout_s": float("nan")}),
        (lambda: 1, {"approval_timeout_s": -1}), (lambda: 1, {"unreachable_s": float("inf")}), (lambda: 1, {"on_pending": coroutine}),
        (lambda: 1, {"channel": "a\nb"}), (lambda: 1, {"contains_sensitive_data": None}), (dict, {}), (type, {}),
    ],
)  # fmt: skip
def test_what_cannot_be_safe_is_refused_when_it_is_set_up(edge, function, how):
    with aegisagent.Client(edge.url, "x" * 40) as client, pytest.raises(aegisagent.ConfigError):
        aegisagent.protect(client, **({"tool": "crm", "action": "a"} | how))(function)


@pytest.mark.feature("protect-config")
def test_an_async_client_protects_no_blocking_function():
    with pytest.raises(aegisagent.ConfigError):
        aegisagent.protect(aegisagent.AsyncClient("http://127.0.0.1:1", "x" * 40), tool="crm", action="a")(lambda: 1)


@pytest.mark.feature("protect-config")
def test_a_protected_function_looks_like_the_function_and_gives_no_way_around(edge):
    def function(note: str, amount: "int" = 1) -> str:
        """What it does."""
        return note

    with aegisagent.Client(edge.url, "x" * 40) as client:
        protected = aegisagent.protect(client, tool="crm", action="a")(function)
    assert (protected.__name__, protected.__doc__) == ("function", "What it does.")
    assert inspect.signature(protected) == inspect.signature(function)
    assert protected.__annotations__ == {"note": str, "amount": int, "return": str}
    assert not hasattr(protected, "__wrapped__")
    assert inspect.unwrap(protected) is protected


@pytest.mark.feature("protect-allow")
def test_a_method_is_protected_for_each_object(edge):
    with aegisagent.Client(edge.url, "x" * 40) as client:

        class Shop:
            def __init__(self, name):
                self.name = name

            @aegisagent.protect(client, tool="crm", action="a", passed_on=["self"])
            def refund(self, amount):
                return self.name, amount

        assert [Shop("a").refund(1), Shop("b").refund(amount=2)] == [("a", 1), ("b", 2)]
    assert [asked["tool_call"]["parameters"] for asked in edge.sent("authorize")] == [{"amount": 1}, {"amount": 2}]


@pytest.mark.feature("e2e-cancel")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("where", ["authorize", "approval", "consume"])
def test_a_call_that_is_cancelled_before_it_runs_does_not_run(edge, recorder, backend, where):
    edge.decision = "require_approval"
    edge.before[where] = lambda: time.sleep(0.6)

    async def main():
        async with aegisagent.AsyncClient(edge.url, "x" * 40) as client:
            protected = aegisagent.protect(client, tool="crm", action="a")(as_async(recorder))
            with anyio.move_on_after(0.3) as scope:
                await protected("a")
            assert scope.cancelled_caught
            await anyio.sleep(0.5)

    anyio.run(main, backend=backend)
    assert (recorder.calls, edge.sent("outcome")) == ([], [])
    assert len(edge.sent("consume")) <= 1


@pytest.mark.feature("protect-outcome")
def test_a_function_that_is_broken_off_is_ambiguous(edge, mode):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(BaseException) as raised:
        mode.call(edge.url, interrupted)
    assert "KeyboardInterrupt" in repr(raised.value)
    assert [outcome["status"] for outcome in edge.sent("outcome")] == ["ambiguous"]


@pytest.mark.feature("protect-freeze")
def test_an_argument_that_another_thread_changes_is_what_was_seen_once_or_a_denial(edge):
    shared, stop = {str(number): [number] for number in range(2000)}, threading.Event()

    def change():
        number = 0
        while not stop.is_set():
            number += 1
            shared[f"new-{number}"] = [number]
            shared.pop(f"new-{number}")
            shared["0"][0] = number

    thread = threading.Thread(target=change)
    thread.start()
    seen, denied = [], 0
    try:
        with aegisagent.Client(edge.url, "x" * 40) as client:
            protected = aegisagent.protect(client, tool="crm", action="a")(lambda data: seen.append(data))
            for _ in range(20):
                try:
                    protected(shared)
                except aegisagent.DeniedUnfreezable as error:
                    assert error.code == "changed_while_frozen"
                    denied += 1
    finally:
        stop.set()
        thread.join()
    assert len(seen) + denied == 20
    assert [asked["tool_call"]["parameters"]["data"] for asked in edge.sent("authorize")] == seen
