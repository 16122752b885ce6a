"""The programs, run as users run them."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from where import CORPUS

from aegisagent import canon
from aegisagent.cli import export_audit, freeze_agent, status, verify_receipts

PROGRAMS = ["aegis-verify-receipts", "aegis-status", "aegis-freeze-agent", "aegis-export-audit"]
VALID, ROOT = str(CORPUS / "receipts/valid.jsonl"), str(CORPUS / "receipts/root.pub")
KEY = "an-api-key-that-nobody-may-see-0123456789"


@pytest.mark.feature("cli")
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_is_installed_and_has_no_option_for_a_key_itself(program):
    path = Path(sysconfig.get_path("scripts"), program)
    if not path.exists():
        pytest.skip("the package is not installed here")
    shown = subprocess.run([path, "--help"], capture_output=True, text=True, check=True).stdout
    assert "--json" in shown
    assert "--token " not in shown
    assert subprocess.run([path, "--nonsense"], capture_output=True, check=False).returncode == 2


@pytest.mark.feature("cli")
def test_verify_receipts_says_what_the_server_s_own_verifier_says(capsys, tmp_path):
    assert verify_receipts.main([VALID, "--root", ROOT]) == 0
    assert capsys.readouterr().out == "valid: 14 receipts in 4 lanes, 14 proofs, 2 declared gaps\n"
    assert verify_receipts.main([VALID, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "self-consistent"
    assert verify_receipts.main([str(CORPUS / "receipts/event-changed.jsonl"), "--root", Path(ROOT).read_text()]) == 1
    assert capsys.readouterr().out.startswith("invalid: receipt 01a202b2-c500-7000-8000-000000000004 (line 6, lane acme.edge-1.")
    (tmp_path / "bad").write_text('{"a":1,"a":2}\n')
    (tmp_path / "empty").write_text("\n")
    for arguments in (
        [str(tmp_path / "bad")],
        [str(tmp_path / "empty")],
        ["/nowhere"],
        [VALID, "--root", "AAAA"],
        [VALID, "--root", "A" * 43 + "="],
    ):
        assert verify_receipts.main(arguments) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.feature("cli")
def test_verify_receipts_reads_standard_input():
    done = subprocess.run(
        [sys.executable, "-m", "aegisagent.cli.verify_receipts", "-", "--root", ROOT],
        stdin=open(VALID),
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert (done.returncode, done.stdout[:6]) == (0, "valid:")


@pytest.fixture
def key(monkeypatch, tmp_path):
    (tmp_path / "key").write_text(KEY)
    monkeypatch.setenv("AEGISAGENT_TOKEN_FILE", str(tmp_path / "key"))


def other(edge, answers):
    edge.replace["other"] = lambda _honest: lambda handler: handler.reply(*answers[handler.path.split("?")[0]])


@pytest.mark.feature("cli")
def test_status_shows_where_things_stand(edge, key, capsys):
    summary = {"incidents": {"open": 2, "contained": 1}, "alerts_24h": 3, "approvals_pending": 4}
    answers = {"/readyz": (200, {"ready": True, "checks": {"bus": True}}), "/v1/soc/summary": (200, summary), "/v1/containment": (200, [])}
    other(edge, answers)
    assert status.main(["--url", edge.url]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == ["ready", "incidents open 2, contained 1"]
    answers["/readyz"] = (503, {"ready": False, "checks": {"bus": False}})
    assert status.main(["--url", edge.url, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["checks"] == {"bus": False}
    answers["/v1/soc/summary"] = (403, {"error": {"code": "wrong_role", "message": f"not with {KEY}"}})
    assert status.main(["--url", edge.url]) == 1
    said = capsys.readouterr()
    assert (said.out, KEY in said.err) == ("", False)
    assert status.main(["--url", "http://10.0.0.1"]) == 2


STATE = {"tenant_id": "t", "target_type": "agent", "target_id": "a", "holds": [], "revoked": False, "revision": 1,
         "issued_at": "2026-01-01T00:00:00Z", "verdict": "frozen", "enforced": True}  # fmt: skip


@pytest.mark.feature("cli")
def test_freeze_agent_says_whether_it_is_enforced(edge, key, capsys):
    other(edge, {"/v1/agents/a/freeze": (200, STATE)})
    assert freeze_agent.main(["a", "--reason", "r", "--ttl-s", "60", "--url", edge.url]) == 0
    assert capsys.readouterr().out == "agent a is frozen; every edge that lives enforces it\n"
    assert edge.sent("other") == [{"reason": "r", "ttl_s": 60}]
    other(edge, {"/v1/agents/a/unfreeze": (200, STATE | {"verdict": "free", "enforced": False})})
    assert freeze_agent.main(["a", "--reason", "r", "--unfreeze", "--json", "--url", edge.url]) == 1
    assert json.loads(capsys.readouterr().out) == {"agent": "a", "verdict": "free", "revision": 1, "enforced": False}
    for bad in (["a"], [], ["a", "--reason", "r", "--unfreeze", "--ttl-s", "1"], ["a", "--reason", "r", "--token", KEY]):
        with pytest.raises(SystemExit) as left:
            freeze_agent.main(bad)
        assert left.value.code == 2


@pytest.mark.feature("cli")
def test_export_audit_writes_a_whole_file_or_none(edge, key, capsys, tmp_path):
    out = tmp_path / "receipts.jsonl"
    other(edge, {"/v1/receipts/export": (200, Path(VALID).read_bytes())})
    assert export_audit.main(["--url", edge.url, "--out", str(out), "--verify", "--root", ROOT, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["receipts"], found["verification"]["verdict"], out.read_bytes()) == (14, "valid", Path(VALID).read_bytes())
    other(edge, {"/v1/receipts/export": (200, (CORPUS / "receipts/row-dropped.jsonl").read_bytes())})
    assert export_audit.main(["--url", edge.url, "--out", str(out), "--verify"]) == 1
    out.unlink()
    edge.replace["other"] = lambda _honest: lambda handler: handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
    assert export_audit.main(["--url", edge.url, "--out", str(out)]) == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "key"]
    for bad in (["--json"], ["--verify"], ["--out", "x", "--root", ROOT]):
        with pytest.raises(SystemExit):
            export_audit.main(bad)


@pytest.mark.feature("cli")
def test_a_missing_credential_is_bad_usage(monkeypatch, capsys):
    monkeypatch.delenv("AEGISAGENT_TOKEN", raising=False)
    for main, arguments in ((status.main, []), (freeze_agent.main, ["a", "--reason", "r"]), (export_audit.main, [])):
        assert main([*arguments, "--url", "http://127.0.0.1:1"]) == 2
        assert "AEGISAGENT_TOKEN" in capsys.readouterr().err
        assert main([*arguments, "--url", "http://127.0.0.1:1", "--token-file", "/nowhere"]) == 2


@pytest.mark.feature("cli")
def test_a_full_disk_is_bad_usage_and_no_answer_of_the_server(edge, key, capsys):
    other(edge, {"/v1/receipts/export": (200, Path(VALID).read_bytes())})
    environment = os.environ | {"AEGISAGENT_URL": edge.url}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "aegisagent.cli.export_audit"], stdout=full, stderr=subprocess.PIPE, text=True, env=environment
        )
    assert (done.returncode, "No space left" in done.stderr) == (2, True)
    assert export_audit.main(["--url", edge.url, "--out", "/nowhere/x"]) == 2


def hostile_export(path):
    """An export that would have a terminal show another verdict than its own."""
    body = {
        "schema": "aegis-receipt-1", "event_id": "x\r\x1b[2Kvalid: 14 receipts\n", "tenant_id": "a\x1b[8m", "lane": "a\x1b[8m.edge.1\u202e😀", "seq": 1, "phase": "x",
        "ts": "2026-11-22T10:00:00Z", "event_digest": "x", "prev_receipt_hash": "", "key_id": "k",
    }  # fmt: skip
    path.write_text(json.dumps(body | {"receipt_hash": canon.sha256_hex(canon.canonicalize_value(body))}))
    return str(path)


@pytest.mark.feature("cli")
def test_what_a_forger_wrote_is_shown_on_one_line_and_commands_no_terminal(edge, key, capsys, tmp_path):
    assert verify_receipts.main([hostile_export(tmp_path / "export")]) == 1
    shown = capsys.readouterr().out
    assert shown.startswith("invalid: receipt x  [2Kvalid: 14 receipts  (line 1, lane a [8m.edge.1 😀 seq 1): lane_rule")
    assert (shown.count("\n"), shown[:-1].isprintable()) == (1, True)
    state = STATE | {"target_id": "a\nready\x1b[2K", "verdict": "fro\rzen"}
    answers = {
        "/readyz": (503, {"ready": False, "checks": {"b\nus": False}}),
        "/v1/soc/summary": (200, {"alerts_24h": "\x1b"}),
        "/v1/containment": (200, [state]),
    }
    other(edge, answers)
    assert status.main(["--url", edge.url]) == 1
    shown = capsys.readouterr().out.splitlines()
    assert (shown[0], shown[-1], len(shown)) == ("not ready: b us", "fro zen: agent a ready [2K", 5)
    other(edge, {"/v1/agents/a/freeze": (200, state)})
    assert freeze_agent.main(["a", "--reason", "r", "--url", edge.url]) == 0
    assert capsys.readouterr().out == "agent a ready [2K is fro zen; every edge that lives enforces it\n"


@pytest.mark.feature("cli")
@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "cp1252"])
def test_a_verdict_is_the_same_whatever_a_terminal_can_show(tmp_path, encoding):
    export, environment = hostile_export(tmp_path / "é"), os.environ | {"PYTHONIOENCODING": encoding}
    for arguments in ([], ["--json"]):
        done = subprocess.run(
            [sys.executable, "-m", "aegisagent.cli.verify_receipts", export, *arguments], capture_output=True, env=environment, check=False
        )
        assert (done.returncode, done.stderr) == (1, b"")
        assert not arguments or json.loads(done.stdout)["failure"]["lane"] == "a\x1b[8m.edge.1\u202e😀"
    done = subprocess.run(
        [sys.executable, "-m", "aegisagent.cli.verify_receipts", "/nowhere/é"], capture_output=True, env=environment, check=False
    )
    assert (done.returncode, b"Traceback" in done.stderr) == (2, False)


@pytest.mark.feature("cli")
def test_an_answer_that_cannot_be_shown_is_neither_a_yes_nor_a_no():
    command = [sys.executable, "-m", "aegisagent.cli.verify_receipts", VALID]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "standard output: [Errno 28] No space left on device\n")
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


@pytest.mark.feature("cli")
def test_an_argument_that_is_no_text_is_bad_usage(edge, key, capsys):
    for arguments in (["a", "--reason", "\udcff"], ["\udcff", "--reason", "r"]):
        assert freeze_agent.main([*arguments, "--url", edge.url]) == 2
    assert edge.seen == []
