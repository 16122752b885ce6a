"""The server's name: looked up within the call's time, and by one thread at a time."""

import socket
import threading

import pytest

import aegisagent

pytestmark = [pytest.mark.feature("hostile-slow"), pytest.mark.feature("transport")]

NAME = "slow.test"


@pytest.fixture
def look_ups(monkeypatch):
    """The look-ups of the name, which hang until `answer` is set; then it is this machine's."""
    real, seen, answer = socket.getaddrinfo, [], threading.Event()

    def getaddrinfo(host, *given, **more):
        if host != NAME:
            return real(host, *given, **more)
        seen.append(host)
        answer.wait(60)
        return real("127.0.0.1", *given, **more)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield seen, answer
    answer.set()


def refund(client):
    return aegisagent.protect(client, tool="crm", action="refund")(lambda amount: amount)


def within(work, seconds=20):
    """What `work` returns or raises, if it ends at all."""
    ended = []

    def run():
        try:
            ended.append(work())
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert ended, "it does not end"
    return ended[0]


def test_a_name_that_is_not_answered_is_a_denial_within_the_timeout(edge, look_ups):
    seen, answer = look_ups
    url = edge.url.replace("127.0.0.1", NAME)
    with aegisagent.Client(url, "x" * 40, timeout_s=0.3, allow_plain_http=True) as client:
        for _ in range(3):
            denied = within(lambda: refund(client)(5))
            assert isinstance(denied, aegisagent.DeniedUnavailable)
            assert denied.code == "unreachable"
        assert seen == [NAME], "one thread waits for it, for all calls"
        assert edge.seen == []
    answer.set()
    with aegisagent.Client(url, "x" * 40, allow_plain_http=True) as client:
        assert within(lambda: refund(client)(5)) == 5


def test_a_name_that_is_not_known_is_a_denial(edge, monkeypatch):
    def unknown(*_given, **_more):
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    for name in (NAME, "a" * 64 + ".test"):
        with aegisagent.Client(edge.url.replace("127.0.0.1", name), "x" * 40, allow_plain_http=True) as client:
            denied = within(lambda client=client: refund(client)(5))
        assert (type(denied), denied.code) == (aegisagent.DeniedUnavailable, "unreachable")


def test_of_several_addresses_one_that_answers_is_taken(edge, monkeypatch):
    real = socket.getaddrinfo

    def several(host, port, *given, **more):
        if host != NAME:
            return real(host, port, *given, **more)
        # Nobody listens on the first.
        return [*real("127.0.0.2", port, type=socket.SOCK_STREAM), *real("127.0.0.1", port, type=socket.SOCK_STREAM)]

    monkeypatch.setattr(socket, "getaddrinfo", several)
    with aegisagent.Client(edge.url.replace("127.0.0.1", NAME), "x" * 40, allow_plain_http=True) as client:
        assert within(lambda: refund(client)(5)) == 5
