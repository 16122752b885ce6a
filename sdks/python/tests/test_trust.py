"""The trust context: it follows the work, only tightens, and is sent with every call."""

import asyncio
import concurrent.futures
import contextvars
import itertools
import threading

import pytest

import aegisagent
from aegisagent import SourceTrust, current_trust, source_trust
from aegisagent.trust import RunTokens, current_user

WORDS = [
    "trusted_internal_signed",
    "trusted_internal_unsigned",
    "semi_trusted_customer",
    "unknown",
    "untrusted_external",
    "malicious_suspected",
]


@pytest.mark.feature("trust-order")
def test_the_order_is_the_contract_s():
    assert [label.value for label in SourceTrust] == WORDS
    for one, other in itertools.product(SourceTrust, repeat=2):
        assert one.combine(other) == other.combine(one) == (one if one.strictness >= other.strictness else other)


@pytest.mark.feature("trust-context")
def test_the_default_is_unknown_and_the_first_label_holds():
    assert current_trust() is SourceTrust.UNKNOWN
    with source_trust("trusted_internal_unsigned"):
        assert current_trust() is SourceTrust.TRUSTED_INTERNAL_UNSIGNED
    assert current_trust() is SourceTrust.UNKNOWN


@pytest.mark.feature("trust-context")
def test_a_label_within_another_only_tightens():
    for outer, inner in itertools.product(WORDS, repeat=2):
        with source_trust(outer), source_trust(inner) as effective:
            assert WORDS.index(effective.value) == max(WORDS.index(outer), WORDS.index(inner))
            assert current_trust() is effective


@pytest.mark.feature("trust-context")
def test_a_misspelt_label_is_an_error_where_the_author_wrote_it_and_unknown_where_a_server_did():
    for word in ("untrusted_extrenal", "UNKNOWN", "", None, 3):
        with pytest.raises(aegisagent.ConfigError), source_trust(word):
            pass
        assert SourceTrust.read(word) is SourceTrust.UNKNOWN


class Anything:
    def __eq__(self, other):
        return True

    __hash__ = None


class Word(str):
    __slots__ = ()

    def __eq__(self, other):
        return True

    __hash__ = str.__hash__


@pytest.mark.feature("trust-context")
def test_what_says_that_it_is_every_label_is_none():
    for word in (Anything(), Word("untrusted_external")):
        with pytest.raises(aegisagent.ConfigError):
            source_trust(word)
        assert SourceTrust.read(word) is SourceTrust.UNKNOWN


@pytest.mark.feature("trust-context")
def test_a_label_follows_await_and_tasks_and_does_not_leak_back():
    async def child(label):
        with source_trust(label):
            await asyncio.sleep(0)
            return current_trust().value

    async def main():
        with source_trust("semi_trusted_customer"):
            tasks = [asyncio.create_task(child(label)) for label in WORDS]
            found = [await task for task in tasks]
            assert current_trust() is SourceTrust.SEMI_TRUSTED_CUSTOMER
            assert await asyncio.to_thread(current_trust) is SourceTrust.SEMI_TRUSTED_CUSTOMER
            return found

    assert asyncio.run(main()) == ["semi_trusted_customer"] * 3 + WORDS[3:]


@pytest.mark.feature("trust-threads")
def test_a_label_run_and_user_follow_threads_that_are_started_through_the_helpers():
    seen = []

    def look():
        seen.append((current_trust().value, aegisagent.current_run(), current_user()))

    with source_trust("untrusted_external"), aegisagent.run("r"), aegisagent.on_behalf_of("u"):
        expected = (current_trust().value, "r", {"id": "u"})
        thread = aegisagent.Thread(look)
        carried = aegisagent.in_context(look)
        with aegisagent.TrustThreadPoolExecutor(2) as pool, concurrent.futures.ThreadPoolExecutor(1) as plain:
            futures = [pool.submit(look), aegisagent.submit(plain, look)]
            list(pool.map(lambda _: look(), range(2)))
    # Started and called when the block is over: it is the making that counts.
    thread.start()
    thread.join()
    contextvars.Context().run(carried)
    [future.result() for future in futures]
    assert seen == [expected] * 6
    plain_thread = threading.Thread(target=look)
    plain_thread.start()
    plain_thread.join()
    assert seen[-1] == ("unknown", None, None), "a thread of another kind knows nothing, which never is a better label than `unknown`"


@pytest.mark.feature("trust-threads")
def test_a_carried_function_never_loosens_where_it_is_called():
    with source_trust("trusted_internal_unsigned"):
        carried = aegisagent.in_context(current_trust)
    with source_trust("untrusted_external"):
        assert carried() is SourceTrust.UNTRUSTED_EXTERNAL
    assert current_trust() is SourceTrust.UNKNOWN


@pytest.mark.feature("trust-token")
def test_a_call_says_its_label_run_and_user_and_echoes_the_token(edge, mode, recorder):
    def work(protect):
        with source_trust("semi_trusted_customer"), aegisagent.run("r"), aegisagent.on_behalf_of("u", "role"):
            protect(recorder, channel="c", contains_sensitive_data=True)("a")
            edge.replace["authorize"] = lambda honest: (
                200,
                honest[1] | {"root_trust_level": "untrusted_external", "trust_token": "strict"},
            )
            protect(recorder)("a")
            edge.replace.clear()
            protect(recorder)("a")
            protect(recorder)("a")
        with aegisagent.run("other"):
            protect(recorder)("a")
        protect(recorder)("a")
        protect(recorder)("a")

    mode.run(edge.url, work)
    asked = edge.sent("authorize")
    assert asked[0]["context"] == {"source_trust": "semi_trusted_customer", "contains_sensitive_data": True, "channel": "c"}
    assert asked[0]["user"] == {"id": "u", "role": "role"}
    assert [one["trace"] for one in asked] == [
        {"run_id": "r"}, {"run_id": "r", "trust_token": "token"}, {"run_id": "r", "trust_token": "strict"}, {"run_id": "r", "trust_token": "strict"},
        {"run_id": "other"}, {}, {"trust_token": "token"},
    ]  # fmt: skip
    assert asked[-1]["context"]["source_trust"] == "unknown"


@pytest.mark.feature("trust-token")
def test_the_memory_of_runs_is_bounded():
    tokens = RunTokens()
    for number in range(10_050):
        tokens.keep(str(number), SourceTrust.UNKNOWN, "t")
    assert (tokens.get("0"), tokens.get("10049")) == (None, "t")


@pytest.mark.feature("trust-context")
def test_a_run_id_is_one_that_a_server_takes():
    for bad in ("", "x" * 257, "a\nb", "\ud800", None, 7):
        for block in (aegisagent.run, aegisagent.on_behalf_of):
            with pytest.raises(aegisagent.ConfigError):
                block(bad)


@pytest.mark.feature("trust-context")
def test_a_block_is_no_decorator():
    for block in (source_trust("unknown"), aegisagent.run("r"), aegisagent.on_behalf_of("u")):
        with pytest.raises(TypeError):
            block(lambda: 1)


@pytest.mark.feature("trust-context")
def test_a_block_may_be_entered_by_several_tasks_and_threads_at_once():
    blocks = [source_trust("untrusted_external"), aegisagent.run("r"), aegisagent.on_behalf_of("u")]
    expected = (SourceTrust.UNTRUSTED_EXTERNAL, "r", {"id": "u"})

    def here():
        return current_trust(), aegisagent.current_run(), current_user()

    async def task(entered, may_leave, has_left):
        with blocks[0], blocks[1], blocks[2]:
            entered.set()
            await may_leave.wait()
            found = here()
        has_left.set()
        return found, here()

    async def main():
        # The first to enter is the first to leave.
        first, second, left = asyncio.Event(), asyncio.Event(), asyncio.Event()
        return await asyncio.gather(task(first, second, left), task(second, left, asyncio.Event()))

    assert asyncio.run(main()) == [(expected, (SourceTrust.UNKNOWN, None, None))] * 2
    barrier = threading.Barrier(2)

    def work():
        with blocks[0], blocks[1], blocks[2]:
            barrier.wait(10)
            found = here()
            barrier.wait(10)
        return found, here()

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        assert [future.result() for future in [pool.submit(work) for _ in range(2)]] == [(expected, (SourceTrust.UNKNOWN, None, None))] * 2
    with blocks[0], blocks[0]:
        assert current_trust() is SourceTrust.UNTRUSTED_EXTERNAL
    assert current_trust() is SourceTrust.UNKNOWN


@pytest.mark.feature("trust-context")
def test_blocks_that_end_in_another_order_leave_nothing_behind():
    def reading():
        with source_trust("untrusted_external"):
            yield current_trust()

    pages = reading()
    with source_trust("semi_trusted_customer"):
        assert next(pages) is SourceTrust.UNTRUSTED_EXTERNAL
    assert current_trust() is SourceTrust.UNTRUSTED_EXTERNAL, "it is still being read"
    pages.close()
    assert current_trust() is SourceTrust.UNKNOWN
    # In a context in which it was never entered.
    pages = reading()
    contextvars.copy_context().run(next, pages)
    pages.close()
    assert current_trust() is SourceTrust.UNKNOWN


@pytest.mark.feature("trust-threads")
def test_a_label_follows_what_is_awaited_elsewhere():
    async def look():
        before = current_trust().value, aegisagent.current_run()
        await asyncio.sleep(0)
        return before, (current_trust().value, aegisagent.current_run())

    with source_trust("untrusted_external"), aegisagent.run("r"):
        carried = [aegisagent.in_context(look), aegisagent.in_context(lambda: look())]

    async def main():
        found = [await asyncio.create_task(one()) for one in carried]
        with source_trust("malicious_suspected"):
            found.append(await carried[0]())
        return found, current_trust(), aegisagent.current_run()

    expected = [(("untrusted_external", "r"),) * 2] * 2 + [(("malicious_suspected", "r"),) * 2]
    assert contextvars.Context().run(asyncio.run, main()) == (expected, SourceTrust.UNKNOWN, None)

    def lazy():
        yield current_trust()

    async def lazy_too():
        yield current_trust()

    for one in (lazy, lazy_too):
        with pytest.raises(aegisagent.ConfigError):
            aegisagent.in_context(one)
