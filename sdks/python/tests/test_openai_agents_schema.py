"""Tools of the OpenAI Agents SDK with schemas, with the real package: what is hashed is what the schema made of the model's text, and what the function gets."""

import asyncio
import datetime
import enum
import json
from typing import Annotated, Any

import agents
import pytest
from adapting import asked, client_of
from agents.tool_context import ToolContext
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, SecretStr
from test_openai_agents import ScriptedModel, run_agent, tool_context

import aegisagent
from aegisagent.adapters.openai_agents import protect_agent

pytestmark = pytest.mark.feature("adapter-openai-agents")


class Color(enum.Enum):
    RED = "red"


class Item(BaseModel):
    name: str
    count: int = 1


def made(client, function, *, strict_mode=False, failure_error_function=None, **settings):
    """A tool made of a function, protected."""
    tool = agents.function_tool(function, strict_mode=strict_mode, failure_error_function=failure_error_function)
    protect_agent(client, agents.Agent(name="a", tools=[tool]), tool="crm", **settings)
    return tool


def invoke(tool, given, context=None):
    return asyncio.run(tool.on_invoke_tool(context or tool_context(), given if isinstance(given, str) else json.dumps(given)))


def sent(edge):
    return [one["tool_call"]["parameters"] for one in edge.sent("authorize")]


@pytest.fixture
def buy(ran):
    def buy(item: Item, day: datetime.date, amount: int = 1, color: Color = Color.RED, tags: list[str] = None) -> str:  # noqa: RUF013  # as people write it
        """Buys."""
        ran.append((item, day, amount, color, tags))
        return "bought"

    return buy


BOUGHT = {"item": {"name": "pen", "count": 2}, "day": "2026-11-26", "amount": 5, "color": "red", "tags": None}
GIVEN = {"item": {"name": "pen", "count": "2"}, "day": "2026-11-26", "amount": "5", "other": "left out"}


@pytest.mark.parametrize("kind", ["asynchronous", "blocking"])
def test_what_the_schema_makes_is_hashed_and_run(edge, ran, buy, kind):
    tool = agents.function_tool(buy, strict_mode=False)
    agent = agents.Agent(name="a", model=ScriptedModel("buy", json.dumps(GIVEN)), tools=[tool])
    assert run_agent(edge, agent, kind, resource=lambda _action, read: f"{read['amount']} {read['color']}") == "bought"
    assert sent(edge) == [BOUGHT]
    assert asked(edge) == [("crm", "buy", True, "5 red")]
    assert ran == [(Item(name="pen", count=2), datetime.date(2026, 11, 26), 5, Color.RED, None)]
    assert [type(one) for one in ran[0][:4]] == [Item, datetime.date, int, Color]


def test_every_kind_of_parameter_gets_what_was_hashed(edge, ran):
    def take(context: ToolContext[Any], first: int, /, second: str = "b", *rest: int, only: float = 2, **more: int) -> str:
        """Takes."""
        ran.append((context.tool_call_id, first, second, rest, only, more))
        return "taken"

    with client_of(edge, "blocking") as client:
        tool = made(client, take)
        assert invoke(tool, {"first": "1"}) == "taken"
        assert invoke(tool, {"first": 1, "second": "c", "rest": ["2", 3], "only": "4.5", "more": {"x": "6"}}) == "taken"
        with pytest.raises(agents.ModelBehaviorError, match="both a named parameter"):
            invoke(tool, {"first": 1, "more": {"second": 6}})
    assert ran == [("call", 1, "b", (), 2, {}), ("call", 1, "c", (2, 3), 4.5, {"x": 6})]
    assert sent(edge) == [
        {"first": 1, "second": "b", "rest": [], "only": 2, "more": {}}, {"first": 1, "second": "c", "rest": [2, 3], "only": 4.5, "more": {"x": 6}},
    ]  # fmt: skip


def test_a_validator_s_result_is_what_is_hashed_and_run(edge, ran):
    async def refund(
        order: Annotated[str, AfterValidator(lambda text: text.strip().upper())], amount: Annotated[int, BeforeValidator(abs)]
    ) -> str:
        """Refunds."""
        ran.append({"order": order, "amount": amount})
        return "refunded"

    with client_of(edge, "blocking") as client:
        invoke(made(client, refund), {"order": " order-7 ", "amount": -5})
    assert ran == sent(edge) == [{"order": "ORDER-7", "amount": 5}]


def test_a_parameter_has_the_name_that_the_model_gives_it(edge, ran):
    def visit(customer: Annotated[str, Field(alias="customerId")], day: Annotated[datetime.date, Field(alias="onDay")]) -> str:
        """Visits."""
        ran.append((customer, day))
        return "visited"

    with client_of(edge, "blocking") as client:
        invoke(made(client, visit), {"customerId": "c-1", "onDay": "2026-11-26"})
    assert (ran, sent(edge)) == ([("c-1", datetime.date(2026, 11, 26))], [{"customerId": "c-1", "onDay": "2026-11-26"}])


def not_stable():
    def counts(amount: Annotated[int, AfterValidator(lambda amount: amount + 1)]) -> str:
        """A validator that is not idempotent."""

    def hides(token: SecretStr) -> str:
        """A value that hides what it is."""

    class Doubling(BaseModel):
        value: Annotated[int, AfterValidator(lambda value: value * 2)]

    def nested(part: Doubling) -> str:
        """The same, deeper."""

    def infinite(value: float) -> str:
        """No JSON number."""

    def unordered(names: set[str]) -> str:
        """No JSON order."""

    return [
        (counts, {"amount": 1}, "schema_not_stable"), (hides, {"token": "s"}, "schema_not_stable"),
        (nested, {"part": {"value": 1}}, "schema_not_stable"), (infinite, {"value": "inf"}, "non_finite_number"),
        (unordered, {"names": ["a", "b"]}, "unsupported_type"),
    ]  # fmt: skip


@pytest.mark.parametrize(("function", "given", "code"), not_stable(), ids=lambda value: getattr(value, "__name__", None))
def test_a_schema_that_does_not_take_its_own_result_is_a_denial(edge, function, given, code):
    with client_of(edge, "blocking") as client:
        with pytest.raises(aegisagent.DeniedUnfreezable) as denied:
            invoke(made(client, function), given)
        assert denied.value.code == code
        assert f"The call was denied: {code}" in invoke(made(client, function, tell_model=True), given)
    assert edge.seen == []


def test_a_schema_that_changes_its_mind_does_not_run(edge, ran):
    def update(note: Annotated[str, AfterValidator(lambda note: f"{note}!" if edge.seen else note)]) -> str:
        """Updates."""
        ran.append(note)

    with client_of(edge, "blocking") as client, pytest.raises(aegisagent.DeniedUnfreezable, match="schema_not_stable"):
        invoke(made(client, update), {"note": "a"})
    assert ran == []


def test_arguments_that_do_not_fit_are_answered_by_the_framework_and_nobody_is_asked(edge, ran, buy):
    with client_of(edge, "blocking") as client:
        with pytest.raises(agents.ModelBehaviorError, match="Invalid JSON input for tool buy"):
            invoke(made(client, buy), {"item": {"name": "pen"}, "day": "tomorrow"})
        told = made(client, buy, failure_error_function=lambda _context, error: f"told of {type(error).__name__}")
        assert invoke(told, {"day": "2026-11-26"}) == "told of ModelBehaviorError"
    assert (ran, edge.seen) == ([], [])
    agent = agents.Agent(name="a", model=ScriptedModel("buy", "{}"), tools=[agents.function_tool(buy, strict_mode=False)])
    assert "Please try again" in run_agent(edge, agent)
    assert (ran, edge.seen) == ([], [])


def test_a_validator_that_refuses_once_lets_nothing_through(edge, ran):
    turns = iter([True])

    def moody(query: str) -> str:
        if next(turns, False):
            raise ValueError("not now")
        return query

    def find(query: Annotated[str, AfterValidator(moody)]) -> str:
        """Finds."""
        ran.append(query)

    with client_of(edge, "blocking") as client, pytest.raises(Exception, match="not now"):
        invoke(made(client, find), {"query": "a"})
    assert (ran, edge.seen) == ([], [])


def test_an_edit_is_read_by_the_schema(edge, ran, buy):
    edge.decision = "require_approval"
    action = {"tool": "crm", "action": "buy", "resource": None, "mutates_state": True}
    with client_of(edge, "blocking") as client:
        tool = made(client, buy, accept_edits=True)
        edge.edited = action | {"parameters": BOUGHT | {"day": "2026-11-27", "tags": ["a"]}}
        assert invoke(tool, GIVEN) == "bought"
        for change in ({"day": "tomorrow"}, {"amount": "6"}, {"item": {"name": "ink"}}, {"tags": "a"}, {"color": "blue"}):
            edge.edited = action | {"parameters": BOUGHT | change}
            with pytest.raises(aegisagent.DeniedByApprover, match="approval_edited"):
                invoke(tool, GIVEN)
    assert ran == [(Item(name="pen", count=2), datetime.date(2026, 11, 27), 5, Color.RED, ["a"])]
    assert len(edge.sent("consume")) == 1


def test_arguments_that_others_left_on_the_context_do_not_run(edge, ran):
    def update(context: ToolContext[Any], note: str, count: int = 1) -> str:
        """Updates."""
        ran.append((note, count, json.loads(context.tool_arguments), json.loads(context.tool_call.arguments)))
        return "updated"

    from openai.types.responses import ResponseFunctionToolCall

    text = '{"note":"a"}'
    call = ResponseFunctionToolCall(arguments=text, call_id="call", name="update", type="function_call")
    context = ToolContext(context=None, tool_name="update", tool_call_id="call", tool_arguments=text, tool_call=call)
    with client_of(edge, "blocking") as client:
        plain = agents.function_tool(update)
        tool = made(client, update)
        other = plain.on_invoke_tool.prepare_arguments('{"note":"evil","count":9}', "update")

        def leave():
            context._function_tool_arguments = other
            context.tool_arguments = call.arguments = '{"note":"evil","count":9}'

        edge.before["authorize"] = leave
        assert invoke(tool, text, context) == "updated"
    read = {"note": "a", "count": 1}
    assert ran == [("a", 1, read, read)]
    assert sent(edge) == [read]


def test_the_framework_s_own_approval_goes_before(edge, ran):
    seen = []

    async def needs(_context, parameters, _call_id):
        seen.append(parameters)
        return False

    @agents.function_tool(needs_approval=needs)
    def update(note: str, count: int) -> str:
        """Updates."""
        ran.append((note, count))
        return "updated"

    agent = agents.Agent(name="a", model=ScriptedModel("update", '{"note":"a","count":1}'), tools=[update])
    assert run_agent(edge, agent) == "updated"
    assert (seen, ran) == ([{"note": "a", "count": 1}], [("a", 1)])


def test_a_tool_with_an_invoker_of_its_own_gets_the_text_as_it_was_hashed(edge, ran):
    async def own(_context, text):
        ran.append(json.loads(text))
        return "own"

    tool = agents.FunctionTool("own", "Owns.", {"type": "object", "properties": {}}, own, strict_json_schema=False)
    with client_of(edge, "blocking") as client:
        protect_agent(client, agents.Agent(name="a", tools=[tool]), tool="crm")
        assert invoke(tool, {"amount": "5"}) == "own"
    assert ran == sent(edge) == [{"amount": "5"}]


def test_a_tool_whose_reading_cannot_be_seen_is_refused_and_nothing_is_half_done(edge, buy, monkeypatch):
    def hidden(change):
        tool, plain = (agents.function_tool(buy, strict_mode=False) for _ in range(2))
        before = plain.on_invoke_tool
        change(tool)
        with (
            client_of(edge, "blocking") as client,
            pytest.raises(aegisagent.ConfigError, match="how it reads its arguments cannot be seen"),
        ):
            protect_agent(client, agents.Agent(name="a", tools=[plain, tool]), tool="crm")
        assert plain.on_invoke_tool is before

    def replaced(tool):
        inner = tool.on_invoke_tool

        async def traced(context, text):
            return await inner(context, text)

        tool.on_invoke_tool = traced

    hidden(replaced)
    # As another version might have it.
    kind = type(agents.function_tool(buy, strict_mode=False).on_invoke_tool)
    for change in (lambda *_: None, lambda *_: object()):
        monkeypatch.setattr(kind, "prepare_arguments", change)
        hidden(lambda _tool: None)
    monkeypatch.delattr(kind, "prepare_arguments")
    hidden(lambda _tool: None)
