"""What came of an action, and what is reported of it."""

import concurrent.futures
import dataclasses

import pytest
from given import coroutine, many_times

import aegisagent


@pytest.mark.feature("protect-outcome")
def test_an_output_that_refers_to_one_thing_many_times_is_not_reported(edge, mode):
    result = mode.call(edge.url, lambda: many_times(40), how={"report_output": True})
    assert len(result) == 2
    assert [(outcome["status"], outcome.get("output")) for outcome in edge.sent("outcome")] == [("ok", None)]


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


@pytest.mark.feature("protect-outcome")
def test_a_function_that_is_broken_off_is_ambiguous(edge, mode):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(BaseException) as raised:
        mode.call(edge.url, interrupted)
    assert "KeyboardInterrupt" in repr(raised.value)
    assert [outcome["status"] for outcome in edge.sent("outcome")] == ["ambiguous"]
