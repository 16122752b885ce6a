"""`protect`, with an honest server: what is allowed runs, what cannot be safe is refused when it is set up, and what is cancelled does not run."""

import inspect
import threading

import anyio
import pytest
from conftest import as_async
from given import coroutine, hash_of

import aegisagent


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


@pytest.mark.feature("protect-unfreezable")
@pytest.mark.parametrize(
    ("resource", "code"),
    [
        (lambda parameters: 1 // 0, "unsupported_type"), (lambda parameters: parameters["no such one"], "unsupported_type"),
        (lambda parameters: 7, "unsupported_type"), (lambda parameters: b"r", "unsupported_type"), (lambda parameters: "\ud800", "lone_surrogate"),
    ],
)  # fmt: skip
def test_a_resource_that_cannot_be_told_is_a_denial_and_nothing_is_sent(edge, mode, recorder, resource, code):
    with pytest.raises(aegisagent.DeniedUnfreezable) as denied:
        mode.call(edge.url, recorder, "a note that nobody may see", how={"resource": resource})
    assert (denied.value.code, recorder.calls, edge.seen) == (code, [], [])
    assert "nobody may see" not in str(denied.value)
    assert isinstance(denied.value.__context__, aegisagent.CanonError | None), "an error of the caller's own may hold an argument"


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
    # No answer comes before it is cancelled, however long this machine takes for that.
    is_cancelled = threading.Event()
    edge.before[where] = lambda: is_cancelled.wait(60)

    async def main():
        async with aegisagent.AsyncClient(edge.url, "x" * 40) as client:
            protected = aegisagent.protect(client, tool="crm", action="a")(as_async(recorder))
            with anyio.move_on_after(0.3) as scope:
                await protected("a")
            assert scope.cancelled_caught
            is_cancelled.set()
            await anyio.sleep(0.5)

    anyio.run(main, backend=backend)
    assert (recorder.calls, edge.sent("outcome")) == ([], [])
    assert len(edge.sent("consume")) <= 1
