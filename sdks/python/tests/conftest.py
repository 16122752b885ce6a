"""What the tests share: an edge that can be made hostile, and one way to call a protected function that blocks or awaits."""

import inspect
import json
import os
import pathlib

import anyio
import pytest
from fake import FakeEdge

import aegisagent
from aegisagent import _exchange, _flow

# What the tests prove, for sdks/README.md.


def pytest_collection_modifyitems(items):
    for item in items:
        marked = [mark.args[0] for mark in item.iter_markers("feature")]
        assert marked, f"{item.nodeid} names no feature"
        item.user_properties += [("feature", name) for name in marked]


_passed, _not_passed = set(), set()


def pytest_runtest_logreport(report):
    features = {value for name, value in report.user_properties if name == "feature"}
    if report.outcome != "passed":
        _not_passed.update(features)
    elif report.when == "call":
        _passed.update(features)


def pytest_sessionfinish(session):
    path = os.environ.get("AEGIS_SDK_FEATURES")
    if path and not hasattr(session.config, "workerinput"):
        pathlib.Path(path).write_text(json.dumps(sorted(_passed - _not_passed)))


TOKEN = "agent-token-that-nobody-may-see-0123456789"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    """The pauses between polls and repetitions, for tests that wait for many of them."""
    monkeypatch.setattr(_flow, "FIRST_POLL_S", 0.02)
    monkeypatch.setattr(_exchange, "FIRST_PAUSE_S", 0.01)


@pytest.fixture
def edge():
    server = FakeEdge()
    yield server
    server.close()


@pytest.fixture(scope="module")
def aegis():
    """The real program, one for each module."""
    from world import Aegis

    instance = Aegis().start()
    yield instance
    instance.close()


@pytest.fixture
def world(aegis):
    """A tenant of its own."""
    from world import World

    with World(aegis) as opened:
        yield opened


@pytest.fixture
def ran():
    """What ran."""
    return []


class Mode:
    """A client of one kind, and what it protects."""

    def __init__(self, name):
        self.name = name

    def run(self, url, work, token=TOKEN, **options):
        """`work(protect)` with the client's `protect(function, **options)`, which gives a function to call from `work`."""
        if self.name == "blocking":
            with aegisagent.Client(url, token, **options) as client:
                return work(lambda function, **how: aegisagent.protect(client, **(DEFAULTS | how))(function))

        async def main():
            async with aegisagent.AsyncClient(url, token, **options) as client:

                def protect(function, **how):
                    protected = aegisagent.protect(client, **(DEFAULTS | how))(as_async(function))
                    return lambda *args, **kwargs: anyio.from_thread.run(lambda: protected(*args, **kwargs))

                return await anyio.to_thread.run_sync(work, protect)

        return anyio.run(main, backend=self.name)

    def call(self, url, function, *args, how=None, **kwargs):
        """Calls a protected function once."""
        return self.run(url, lambda protect: protect(function, **(how or {}))(*args, **kwargs))


DEFAULTS = {"tool": "crm", "action": "update_note", "resource": "customer-1"}


def as_async(function):
    async def protected(*args, **kwargs):
        return function(*args, **kwargs)

    protected.__signature__ = inspect.signature(function)
    return protected


@pytest.fixture(params=["blocking", "asyncio", "trio"])
def mode(request):
    return Mode(request.param)


class Recorder:
    """A function to protect, which remembers what it was called with."""

    def __init__(self, result="done"):
        self.calls = []
        self.result = result

    def __call__(self, note, amount=1):
        self.calls.append({"note": note, "amount": amount})
        return self.result


@pytest.fixture
def recorder():
    return Recorder()
