"""What is hashed is what runs: arguments are read once, and what cannot be is refused."""

import threading
import time
import tracemalloc

import pytest
from given import hash_of, many_times

import aegisagent
from aegisagent import canon


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


@pytest.mark.feature("protect-freeze")
def test_numbers_and_texts_arrive_as_they_were_given(edge, mode):
    values = [0, -1, 1.0, -0.0, 0.1, 1e20, 1e-7, 2**53 - 1, True, None, "é", "😀", "\u2028", "a\x00b", "", {"": [{}]}]
    seen = mode.call(edge.url, lambda values: list(values), values)
    assert [(type(value), repr(value)) for value in seen] == [(type(value), repr(value)) for value in values]


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
