"""LangChain tools with schemas of their own, with the real package: what is hashed is what the schema made of the input, and what the function gets."""

import asyncio
import datetime
import decimal
import enum
import itertools
import uuid
from typing import Annotated, Any

import pytest
from adapting import client_of

import aegisagent
from aegisagent import canon

pytest.importorskip("langchain_core")

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.tools import BaseTool, InjectedToolCallId, StructuredTool, Tool, tool
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, SecretStr, ValidationError, v1

from aegisagent.adapters.langchain import protect_tools

pytestmark = pytest.mark.feature("adapter-langchain")

FULL = {"properties": {"path": {"type": "string"}}, "type": "object", "title": "Full", "description": "A JSON schema."}


class Color(enum.Enum):
    RED = "red"


class Item(BaseModel):
    name: str
    count: int = 1


def protected(client, function, ran, **settings):
    """A tool made of a function, which notes what it was called with; protected."""

    def noting(*args, **kwargs):
        ran.append(kwargs or args)
        return function(*args, **kwargs)

    of = {"args_schema": settings.pop("args_schema")} if "args_schema" in settings else {}
    made = tool(function, **of)
    made.func = noting
    return protect_tools(client, [made], tool="crm", **settings)[0]


def both(made, given, config=None):
    """Runs a tool in both ways."""
    return made.invoke(dict(given), config), asyncio.run(made.ainvoke(dict(given), config))


def sent(edge):
    return [one["tool_call"]["parameters"] for one in edge.sent("authorize")]


def search(query: str, limit: int = 10, tags: list[str] = None) -> str:  # noqa: RUF013  # as people write it
    """Searches."""
    return "found"


def buy(item: Item, day: datetime.date, price: decimal.Decimal, color: Color = Color.RED, at: datetime.datetime | None = None) -> str:
    """Buys."""
    return "bought"


def test_defaults_and_coercions_are_hashed_and_run(edge, ran):
    with client_of(edge, "blocking") as client:
        made = protected(client, search, ran, resource=lambda _action, read: f"up to {read['limit']}")
        assert both(made, {"query": "a", "limit": "5"}) == ("found", "found")
        assert both(made, {"query": "a"}) == ("found", "found")
    expected = [{"query": "a", "limit": limit, "tags": None} for limit in (5, 5, 10, 10)]
    assert (ran, sent(edge)) == (expected, expected)
    assert [type(one["limit"]) for one in ran] == [int] * 4
    assert [one["tool_call"]["resource"] for one in edge.sent("authorize")] == ["up to 5"] * 2 + ["up to 10"] * 2


def test_what_the_schema_leaves_out_is_neither_hashed_nor_run(edge, ran):
    class Query(BaseModel):
        query: str

    with client_of(edge, "blocking") as client:
        made = protected(client, search, ran, args_schema=Query)
        both(made, {"query": "a", "limit": 1000, "other": {"deep": True}})
    assert (ran, sent(edge)) == ([{"query": "a"}] * 2, [{"query": "a"}] * 2)


def test_a_schema_without_fields_hands_on_nothing(edge, ran):
    def ping() -> str:
        """Pings."""
        return "pong"

    with client_of(edge, "blocking") as client:
        made = protected(client, ping, ran)
        assert both(made, {"other": 1}) == ("pong", "pong")
        assert made.invoke("some text") == "pong"
    assert (ran, sent(edge)) == ([()] * 3, [{}] * 3)


def test_extra_keys_that_the_schema_keeps_or_forbids(edge, ran):
    class Open(BaseModel):
        model_config = ConfigDict(extra="allow")
        query: str

    class Closed(BaseModel):
        model_config = ConfigDict(extra="forbid")
        query: str

    def take(**given) -> str:
        """Takes."""
        return "taken"

    with client_of(edge, "blocking") as client:
        both(protected(client, take, ran, args_schema=Open), {"query": "a", "more": 1})
        assert (ran, sent(edge)) == ([{"query": "a", "more": 1}] * 2, [{"query": "a", "more": 1}] * 2)
        with pytest.raises(ValidationError):
            protected(client, take, ran, args_schema=Closed).invoke({"query": "a", "more": 1})
    assert (len(ran), len(sent(edge))) == (2, 2)


def test_a_validator_s_result_is_what_is_hashed_and_run(edge, ran):
    def refund(
        order: Annotated[str, AfterValidator(lambda text: text.strip().upper())], amount: Annotated[int, BeforeValidator(abs)]
    ) -> str:
        """Refunds."""
        return "refunded"

    with client_of(edge, "blocking") as client:
        both(protected(client, refund, ran), {"order": " order-7 ", "amount": -5})
    assert ran == sent(edge) == [{"order": "ORDER-7", "amount": 5}] * 2


def test_dates_models_and_other_values_run_as_their_json_form_reads(edge, ran):
    given = {"item": {"name": "pen", "count": "2"}, "day": "2026-11-26", "price": "1.10", "at": "2026-11-26T20:00:00+02:00"}
    shown = {"item": {"name": "pen", "count": 2}, "day": "2026-11-26", "price": "1.10", "color": "red", "at": "2026-11-26T20:00:00+02:00"}
    with client_of(edge, "blocking") as client:
        made = protected(client, buy, ran)
        assert both(made, given) == ("bought", "bought")
        assert sent(edge) == [shown] * 2
        at = datetime.datetime(2026, 11, 26, 20, tzinfo=datetime.timezone(datetime.timedelta(hours=2)))
        expected = {
            "item": Item(name="pen", count=2),
            "day": datetime.date(2026, 11, 26),
            "price": decimal.Decimal("1.10"),
            "color": Color.RED,
            "at": at,
        }
        assert ran == [expected] * 2
        # As a date from seconds: whoever approves sees the day.
        made.invoke({"item": {"name": "pen"}, "day": 1764115200, "price": 1})
    assert sent(edge)[2] == {"item": {"name": "pen", "count": 1}, "day": "2025-11-26", "price": "1", "color": "red", "at": None}
    assert ran[2]["day"] == datetime.date(2025, 11, 26)


def not_stable():
    """Functions whose schemas make something else of their own result, and inputs for them."""

    def counts(amount: Annotated[int, AfterValidator(lambda amount: amount + 1)]) -> str:
        """A validator that is not idempotent."""

    def hides(token: SecretStr) -> str:
        """A value that hides what it is."""

    class Partial(BaseModel):
        shown: int
        kept: int = Field(exclude=True)

    def excludes(part: Partial) -> str:
        """A value of which the JSON form has a part."""

    class Drawing(BaseModel):
        shown: int
        _drawn: int = PrivateAttr(default_factory=itertools.count().__next__)

    def draws(part: Drawing) -> str:
        """A value that is made differently each time."""

    class Doubling(BaseModel):
        value: Annotated[int, AfterValidator(lambda value: value * 2)]

    def nested(part: Doubling) -> str:
        """The same, deeper."""

    def infinite(value: float) -> str:
        """No JSON number."""

    def unordered(names: set[str]) -> str:
        """No JSON order."""

    def anything(value: Annotated[Any, AfterValidator(lambda _: object())]) -> str:
        """No JSON value."""

    def narrowed(text: Annotated[str, BeforeValidator(lambda text: text.removeprefix("a"))]) -> str:
        """Takes off a letter each time."""

    return [
        (counts, {"amount": 1}, "schema_not_stable"), (hides, {"token": "s"}, "schema_not_stable"),
        (excludes, {"part": {"shown": 1, "kept": 2}}, "schema_not_stable"), (draws, {"part": {"shown": 1}}, "schema_not_stable"),
        (nested, {"part": {"value": 1}}, "schema_not_stable"), (infinite, {"value": "inf"}, "non_finite_number"),
        (unordered, {"names": ["a", "b"]}, "unsupported_type"), (anything, {"value": 1}, "unsupported_type"),
        (narrowed, {"text": "aab"}, "schema_not_stable"),
    ]  # fmt: skip


@pytest.mark.parametrize(("function", "given", "code"), not_stable(), ids=lambda value: getattr(value, "__name__", None))
def test_a_schema_that_does_not_take_its_own_result_is_a_denial(edge, ran, function, given, code):
    with client_of(edge, "blocking") as client:
        made = protected(client, function, ran)
        for way in (made.invoke, lambda given: asyncio.run(made.ainvoke(given))):
            with pytest.raises(aegisagent.DeniedUnfreezable) as denied:
                way(dict(given))
            assert denied.value.code == code
        told = protected(client, function, ran, tell_model=True)
        assert f"The call was denied: {code}" in told.invoke(dict(given))
    assert (ran, edge.seen) == ([], [])


def test_a_schema_that_changes_its_mind_does_not_run(edge, ran):
    seen = []

    def drifts(note: str) -> str:
        # Stable until the call was authorized.
        return f"{note}!" if edge.seen else note

    def update(note: Annotated[str, AfterValidator(drifts)]) -> str:
        """Updates."""

    with client_of(edge, "blocking") as client:
        made = protected(client, update, ran, on_pending=seen.append)
        for way in (made.invoke, lambda given: asyncio.run(made.ainvoke(given))):
            edge.seen.clear()
            with pytest.raises(aegisagent.DeniedUnfreezable, match="schema_not_stable"):
                way({"note": "a"})
    assert ran == []


def test_a_default_that_is_made_anew_each_time_runs_as_it_was_hashed(edge, ran):
    class Order(BaseModel):
        order: str
        key: str = Field(default_factory=lambda: str(uuid.uuid4()))
        ids: list[str] = Field(default_factory=lambda: shared)

    shared = ["a"]

    def place(order: str, key: str, ids: list) -> str:
        """Places an order."""

    edge.before["authorize"] = lambda: shared.append("b")
    with client_of(edge, "blocking") as client:
        protected(client, place, ran, args_schema=Order).invoke({"order": "o-1"})
    assert ran == sent(edge)
    assert ran[0]["ids"] == ["a"]


def test_an_input_that_does_not_fit_is_answered_by_the_framework_and_nobody_is_asked(edge, ran):
    shown = []

    class Look(BaseCallbackHandler):
        def on_tool_error(self, error, **_more):
            shown.append(error)

    with client_of(edge, "blocking") as client:
        made = protected(client, search, ran)
        for way in (made.invoke, lambda *given: asyncio.run(made.ainvoke(*given))):
            with pytest.raises(ValidationError, match="limit"):
                way({"query": "a", "limit": "many"}, {"callbacks": [Look()]})
        made.handle_validation_error = "try again"
        assert both(made, {"query": "a", "limit": "many"}) == ("try again", "try again")
        call = {"name": "search", "args": {"limit": 1}, "id": "1", "type": "tool_call"}
        answer = made.invoke(call)
        assert (answer.content, answer.status, answer.tool_call_id) == ("try again", "error", "1")
    assert len(shown) == 2
    assert (ran, edge.seen) == ([], [])


def test_a_validator_that_refuses_once_lets_nothing_through(edge, ran):
    turns = iter(["no", None, None, None])

    def moody(query: str) -> str:
        if next(turns):
            raise ValueError("not now")
        return query

    def find(query: Annotated[str, AfterValidator(moody)]) -> str:
        """Finds."""

    with client_of(edge, "blocking") as client:
        made = protected(client, find, ran)
        with pytest.raises(ValidationError, match="not now"):
            made.invoke({"query": "a"})
    assert (ran, edge.seen) == ([], [])


def test_an_edit_is_read_by_the_schema(edge, ran):
    edge.decision = "require_approval"
    action = {"tool": "crm", "action": "buy", "resource": None, "mutates_state": True}
    given = {"item": {"name": "pen"}, "day": "2026-11-26", "price": "1"}
    read = {"item": {"name": "pen", "count": 1}, "day": "2026-11-26", "price": "1", "color": "red", "at": None}
    with client_of(edge, "blocking") as client:
        made = protected(client, buy, ran, accept_edits=True)
        edge.edited = action | {"parameters": read | {"item": {"name": "ink", "count": 3}, "at": "2026-11-27T00:00:00Z"}}
        assert both(made, given) == ("bought", "bought")
        assert [one["item"] for one in ran] == [Item(name="ink", count=3)] * 2
        assert ran[0]["at"] == datetime.datetime(2026, 11, 27, tzinfo=datetime.timezone.utc)
        # One that the schema refuses, or makes something else of.
        for change in (
            {"day": "tomorrow"},
            {"item": {"name": "ink", "count": "3"}},
            {"at": 0},
            {"color": "blue"},
            {"day": "2026-11-26T00:00:00"},
        ):
            edge.edited = action | {"parameters": read | change}
            for way in (made.invoke, lambda given: asyncio.run(made.ainvoke(given))):
                with pytest.raises(aegisagent.DeniedByApprover, match="approval_edited"):
                    way(dict(given))
    assert len(ran) == 2
    assert len(edge.sent("consume")) == 2


def test_an_edit_of_a_default_is_read_too(edge, ran):
    edge.decision = "require_approval"
    action = {"tool": "crm", "action": "search", "resource": None, "mutates_state": True}
    with client_of(edge, "blocking") as client:
        made = protected(client, search, ran, accept_edits=True)
        edge.edited = action | {"parameters": {"query": "a", "limit": 3, "tags": ["b"]}}
        made.invoke({"query": "a"})
        edge.edited = action | {"parameters": {"query": "a", "limit": 3, "tags": "b"}}
        with pytest.raises(aegisagent.DeniedByApprover, match="approval_edited"):
            made.invoke({"query": "a"})
    assert ran == [{"query": "a", "limit": 3, "tags": ["b"]}]


def test_what_whoever_approved_saw_is_what_ran_whatever_callbacks_change(edge, ran):
    class Swap(BaseCallbackHandler):
        def on_tool_start(self, *_rest, inputs=None, **_more):
            inputs["item"]["count"] = 1000
            inputs["day"] = "2000-01-01"

    with client_of(edge, "blocking") as client:
        both(protected(client, buy, ran), {"item": {"name": "pen"}, "day": "2026-11-26", "price": 1}, {"callbacks": [Swap()]})
    assert [(one["item"].count, one["day"].year) for one in ran] == [(1, 2026)] * 2


def test_a_parameter_has_the_name_that_the_model_gives_it(edge, ran):
    class Aliased(BaseModel):
        customer: str = Field(alias="customerId")
        day: datetime.date = Field(alias="onDay")
        limit: int = Field(default=3, alias="upTo")

    class Either(BaseModel):
        model_config = ConfigDict(populate_by_name=True)
        customer: str = Field(alias="customerId")

    def visit(customer: str, day: Any = None, limit: int = 0) -> str:
        """Visits."""

    with client_of(edge, "blocking") as client:
        protected(client, visit, ran, args_schema=Aliased).invoke({"customerId": "c-1", "onDay": "2026-11-26"})
        either = protected(client, visit, ran, args_schema=Either)
        either.invoke({"customerId": "c-1"})
        either.invoke({"customer": "c-1"})
    assert ran == [{"customer": "c-1", "day": datetime.date(2026, 11, 26), "limit": 3}, {"customer": "c-1"}, {"customer": "c-1"}]
    assert sent(edge) == [{"customerId": "c-1", "onDay": "2026-11-26", "upTo": 3}, {"customerId": "c-1"}, {"customer": "c-1"}]


def test_schemas_of_json_and_of_the_older_pydantic(edge, ran):
    class Older(v1.BaseModel):
        path: str
        depth: int = 1

    class Dated(v1.BaseModel):
        day: datetime.date

    class Nesting(v1.BaseModel):
        older: Older

    def take(**given) -> str:
        """Takes."""

    with client_of(edge, "blocking") as client:
        made = protect_tools(
            client, [StructuredTool(name="take", description="t", args_schema=FULL, func=lambda **given: ran.append(given))], tool="crm"
        )[0]
        both(made, {"path": "a", "more": [1]})
        protected(client, take, ran, args_schema=Older).invoke({"path": "a", "depth": "2"})
        protected(client, take, ran, args_schema=Dated).invoke({"day": "2026-11-26"})
        with pytest.raises(aegisagent.DeniedUnfreezable):
            protected(client, take, ran, args_schema=Nesting).invoke({"older": {"path": "a"}})
    assert sent(edge) == [{"path": "a", "more": [1]}] * 2 + [{"path": "a", "depth": 2}, {"day": "2026-11-26"}]
    assert ran == [{"path": "a", "more": [1]}] * 2 + [{"path": "a", "depth": 2}, {"day": datetime.date(2026, 11, 26)}]


def test_a_tool_that_takes_one_text(edge, ran):
    with client_of(edge, "blocking") as client:
        made = protect_tools(client, [Tool("echo", lambda text: ran.append(text), "Echoes.")], tool="crm")[0]
        made.invoke("a")
        made.invoke({"query": "b"})
        protected(client, lambda_of_one, ran).invoke("5")
    assert (ran, sent(edge)) == (["a", "b", ("5",)], [{"input": "a"}, {"query": "b"}, {"input": "5"}])


def lambda_of_one(amount: int) -> str:
    """LangChain checks a bare text with the schema, and hands on the text."""


def test_the_id_of_a_call_that_a_function_gets_is_hashed(edge, ran):
    def mark(customer: str, tool_call_id: Annotated[str, InjectedToolCallId]) -> str:
        """Marks."""
        return "marked"

    call = {"name": "mark", "args": {"customer": "c"}, "id": "call-1", "type": "tool_call"}
    with client_of(edge, "blocking") as client:
        made = protected(client, mark, ran)
        assert made.invoke(call).content == asyncio.run(made.ainvoke(call)).content == "marked"
        with pytest.raises(ValueError, match="InjectedToolCallId"):
            made.invoke({"customer": "c"})
        protected(client, mark, ran, passed_on={"tool_call_id"}).invoke(call)
    assert ran == [{"customer": "c", "tool_call_id": "call-1"}] * 3
    assert sent(edge) == [{"customer": "c", "tool_call_id": "call-1"}] * 2 + [{"customer": "c"}]


@pytest.mark.parametrize("way", ["_parse_input", "_to_args_and_kwargs"])
def test_a_tool_that_reads_its_input_in_a_way_of_its_own_is_refused(edge, way):
    class Plain(BaseTool):
        name: str = "plain"
        description: str = "d"

        def _run(self, **given) -> str:
            return "ran"

    own = type("Own", (Plain,), {way: lambda self, *given: getattr(super(type(self), self), way)(*given)})
    with client_of(edge, "blocking") as client:
        with pytest.raises(aegisagent.ConfigError, match="reads its input"):
            protect_tools(client, [own()], tool="crm")
        assert protect_tools(client, [Plain()], tool="crm")[0].invoke({"a": 1}) == "ran"


def test_what_is_hashed_is_the_action_hash_of_what_ran(edge, ran):
    with client_of(edge, "blocking") as client:
        protected(client, search, ran).invoke({"query": "é", "limit": 5.0})
    parameters = sent(edge)[0]
    assert canon.action_hash("crm", "search", None, True, parameters) == canon.action_hash("crm", "search", None, True, ran[0])
