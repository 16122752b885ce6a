"""Callbacks: what the server signed is taken, what anybody else made is not."""

import json
import os
import sys

import pytest
from where import REPOSITORY

import aegisagent

pytestmark = pytest.mark.feature("callbacks")

SECRET = "0123456789abcdef0123456789abcdef"
OTHER = "fedcba9876543210fedcba9876543210"
# Of docs/specs/callback.md, and of the server's own test.
NOW, BODY = 1_800_000_000, b'{"a":1}'
SIGNATURE = "v1=d40e555bc2c1dae21953757b24b165a171698880732ac310a5c8cf0ab751abf2"
ANOTHER = "v1=" + "0" * 64


def verify(secret=SECRET, timestamp=str(NOW), signature=SIGNATURE, body=BODY, now=NOW, **options):
    return aegisagent.verify_callback(secret, timestamp, signature, body, now=now, **options)


def test_the_specification_s_vector_is_right():
    text = (REPOSITORY / "docs/specs/callback.md").read_text(encoding="utf-8")
    for part in (SIGNATURE, SECRET, str(NOW), BODY.decode()):
        assert part in text
    assert verify() is True
    assert verify(secret=SECRET.encode())
    assert verify(body=bytearray(BODY))


@pytest.mark.parametrize("signatures", [f"{SIGNATURE},{ANOTHER}", f"{ANOTHER},{SIGNATURE}", f"{ANOTHER}, {SIGNATURE}"])
def test_while_a_secret_is_changed_one_of_its_signatures_is_enough(signatures):
    assert verify(signature=signatures)


@pytest.mark.parametrize(
    "forged",
    [
        {"secret": OTHER}, {"body": b'{"a":2}'}, {"body": b""}, {"timestamp": str(NOW + 1)}, {"signature": ANOTHER}, {"signature": ""},
        {"signature": None}, {"timestamp": None}, {"timestamp": ""}, {"timestamp": f" {NOW}"}, {"timestamp": f"+{NOW}"},
        {"timestamp": f"{NOW}.0"}, {"timestamp": "٣" * 10}, {"timestamp": f"{NOW}\n"}, {"timestamp": "9" * 5000},
        {"signature": SIGNATURE.removeprefix("v1=")}, {"signature": SIGNATURE.upper()}, {"signature": SIGNATURE[:-1]},
        {"signature": SIGNATURE.replace("v1", "v2")}, {"signature": f"{SIGNATURE},"}, {"signature": f"{SIGNATURE},é"},
        {"signature": ",".join([ANOTHER] * 8 + [SIGNATURE])}, {"signature": SIGNATURE + "\n" + SIGNATURE},
    ],
)  # fmt: skip
def test_what_nobody_with_the_secret_signed_is_refused(forged):
    assert verify(**forged) is False


@pytest.mark.parametrize(("age", "fresh"), [(300, True), (301, False), (-300, True), (-301, False)])
def test_what_was_captured_is_not_taken_later(age, fresh):
    assert verify(now=NOW + age) is fresh
    assert verify(now=NOW + age, tolerance_s=1) is False
    assert verify(tolerance_s=float("nan")) is False


def test_a_secret_that_anybody_could_have_is_an_error():
    for secret in ("", b"", "x" * 31):
        with pytest.raises(aegisagent.ConfigError):
            verify(secret=secret)
    with pytest.raises(aegisagent.ConfigError):
        verify(body=BODY.decode())


@pytest.mark.skipif("AEGIS_BIN" not in os.environ, reason="AEGIS_BIN names no program")
def test_a_callback_of_the_real_program_is_right_and_says_what_to_ask_for():
    sys.path.insert(0, str(REPOSITORY / "tests/e2e"))
    from harness import Aegis, wait_until
    from receiver import Receiver

    aegis, receiver = Aegis(environment={"AEGIS_CONTROL_CALLBACK_LOOPBACK": "true"}), Receiver()
    try:
        aegis.start()
        tenant = aegis.tenant().register_tools()
        tenant.put("/v1/callbacks/secret", {"secret": SECRET}).expect(200)
        tenant.settings(callback_allow_list=[receiver.url])
        agent = tenant.register_agent()
        body = agent.request(action="refund", parameters={"amount": 5}, callback={"url": receiver.url})
        reply = wait_until("the edge knows the list", lambda: (sent := agent.send(body)).status == 200 and sent)
        approval = reply.json["approval"]["approval_id"]
        wait_until("the approval is there", lambda: tenant.get(f"/v1/approvals/{approval}").status == 200)
        approver = tenant.key("approver", "rita", groups=("security",))
        tenant.post(f"/v1/approvals/{approval}/reject", {}, key=approver).expect(200)
        came = wait_until("the callback comes", lambda: receiver.came and receiver.came[0])
        headers = (came.headers["AegisAgent-Timestamp"], came.headers["AegisAgent-Signature"])
        assert aegisagent.verify_callback(SECRET, *headers, came.body)
        assert not aegisagent.verify_callback(OTHER, *headers, came.body)
        assert not aegisagent.verify_callback(SECRET, *headers, came.body.replace(b"REJECTED", b"APPROVED"))
        with aegisagent.Client(f"http://127.0.0.1:{aegis.port}", agent.token) as client:
            asked = client.approval(json.loads(came.body)["approval_id"])
        assert (asked.approval_id, asked.status) == (approval, "REJECTED")
    finally:
        aegis.close()
        receiver.close()
