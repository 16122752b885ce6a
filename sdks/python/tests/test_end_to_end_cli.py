"""The programs as they are installed, against the real program."""

import json
import os
import subprocess
import sysconfig
from pathlib import Path

import pytest
from conftest import Mode, Recorder
from world import READ, wait_until

import aegisagent


@pytest.fixture
def program(world, tmp_path):
    """Runs one of them, with the key of an administrator in a file."""
    (tmp_path / "key").write_text(world.tenant.admin)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AEGIS")}
    environment = kept | {"AEGISAGENT_URL": world.url, "AEGISAGENT_TOKEN_FILE": str(tmp_path / "key")}

    def run(name, *arguments, expect=0):
        path = Path(sysconfig.get_path("scripts"), name)
        if not path.exists():
            pytest.skip("the package is not installed here")
        done = subprocess.run([path, *arguments], env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == expect, done.stderr
        assert world.tenant.admin not in done.stdout + done.stderr
        return done.stdout

    return run


@pytest.mark.feature("cli")
def test_an_agent_that_a_program_froze_does_nothing_until_one_unfreezes_it(world, program, recorder):
    said = program("aegis-freeze-agent", world.agent.id, "--reason", "test")
    assert said == f"agent {world.agent.id} is frozen; every edge that lives enforces it\n"
    with pytest.raises(aegisagent.DeniedByPolicy, match="agent_frozen"):
        world.call(Mode("blocking"), recorder, "a", **READ)
    found = json.loads(program("aegis-status", "--json"))
    assert (found["ready"], found["contained"]) == (True, [{"type": "agent", "id": world.agent.id, "verdict": "frozen"}])
    assert f"frozen: agent {world.agent.id}\n" in program("aegis-status")
    freed = json.loads(program("aegis-freeze-agent", world.agent.id, "--reason", "test", "--unfreeze", "--json"))
    assert (freed["agent"], freed["verdict"], freed["enforced"]) == (world.agent.id, "free", True)
    world.call(Mode("blocking"), recorder, "b", **READ)
    assert [call["note"] for call in recorder.calls] == ["b"]
    assert json.loads(program("aegis-status", "--json"))["contained"] == []
    program("aegis-freeze-agent", "no-such-agent", "--reason", "test", expect=1)


@pytest.mark.feature("cli")
def test_what_a_program_exports_is_verified_under_the_pinned_keys(world, program, tmp_path):
    world.call(Mode("blocking"), Recorder(), "a")
    wait_until("the outcome is an event", lambda: world.outcomes() == ["ok"])
    out, keys = tmp_path / "audit.jsonl", world.aegis.data / "keys"
    roots = [part for name in ("control", "edge") for part in ("--root", str(keys / f"{name}.pub"))]
    found = json.loads(program("aegis-export-audit", "--out", str(out), "--verify", *roots, "--json"))
    lines = out.read_text().splitlines()
    assert (found["receipts"], found["verification"]["verdict"]) == (len(lines), "valid")
    assert found["receipts"] >= 10
    assert program("aegis-verify-receipts", str(out), *roots).startswith(f"valid: {len(lines)} receipts")
    # Without them it vouches for itself alone; and a byte that was changed is found.
    assert json.loads(program("aegis-verify-receipts", str(out), "--json"))["verdict"] == "self-consistent"
    changed = tmp_path / "changed.jsonl"
    changed.write_text(out.read_text().replace('"decision":"allow"', '"decision":"deny"', 1))
    program("aegis-verify-receipts", str(changed), *roots, expect=1)
