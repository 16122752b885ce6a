"""The README as a reader copies it, and the examples, against the real program."""

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from where import PACKAGE, REPOSITORY

import aegisagent

if "AEGIS_BIN" not in os.environ:
    pytest.skip("AEGIS_BIN names no program", allow_module_level=True)
sys.path.insert(0, str(REPOSITORY / "tests/e2e"))
from harness import wait_until

BLOCK = re.compile(r"^(?:<!-- example: (\w+) -->\n)?```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run(script, environment, folder):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], env=environment, cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.feature("readme")
def test_the_readme_leads_from_nothing_to_a_first_denied_and_a_first_approved_call(aegis, tmp_path):
    blocks = BLOCK.findall((PACKAGE / "README.md").read_text())
    code = {name: text for name, language, text in blocks if name}
    keys = next(text for _, language, text in blocks if language == "sh" and "aegis up" in text)
    assert len([line for line in code["call"].splitlines() if line]) < 10
    lines = [line for line in keys.splitlines() if "keys create" in line]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AEGIS")}
    environment |= {"AEGISAGENT_URL": f"http://127.0.0.1:{aegis.port}", "AEGISAGENT_TOKEN_FILE": "./agent.token"}
    for line in lines:
        name, command = re.fullmatch(r"export (\w+)=\$\(aegis (.*)\)", line).groups()
        environment[name] = aegis.cli(*command.replace("./aegis-data", str(aegis.data)).split()).strip()
    run(code["register"], environment, tmp_path)
    assert (tmp_path / "agent.token").stat().st_mode & 0o077 == 0
    approver = aegisagent.Client(environment["AEGISAGENT_URL"], environment["APPROVER"])

    def approve():
        wait_until("somebody asks", lambda: approver.approvals("PENDING"))
        assert "'amount': 5" in run(code["approve"], environment, tmp_path)

    thread = threading.Thread(target=approve)
    thread.start()
    said = run("import warnings; warnings.simplefilter('ignore', ResourceWarning)\n" + code["call"] + code["ask"], environment, tmp_path)
    thread.join(60)
    approver.close()
    assert said.splitlines()[0].startswith("denied (policy_denied): an untrusted source may not change state")
    assert said.splitlines()[1:] == ["refunded 5 for order-7"]


# What the reader does between the blocks, as the text says: the first call is denied, the second waits, and dana approves it.
THE_REST = """
python call.py > said &
call=$!
until python approve.py | tee shown | grep ToolCall > found; do kill -0 $call; done
wait $call
"""


@pytest.mark.feature("readme")
def test_the_shell_blocks_of_the_readme_run_as_they_are_written_in_an_empty_folder(tmp_path):
    """What they install is built from a copy of the checkout, of what is there already: nothing is asked of a registry."""
    folder, programs, checkout, installed = (tmp_path / name for name in ("empty", "programs", "checkout", "installed"))
    folder.mkdir()
    programs.mkdir()
    (programs / "aegis").symlink_to(os.path.realpath(os.environ["AEGIS_BIN"]))
    shutil.copytree(PACKAGE, checkout / "sdks/python", ignore=shutil.ignore_patterns("dist", "tests", "__pycache__"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    blocks = BLOCK.findall((PACKAGE / "README.md").read_text())
    code = {name: text for name, _, text in blocks if name}
    for name, text in (("register", code["register"]), ("call", code["call"] + code["ask"]), ("approve", code["approve"])):
        (folder / f"{name}.py").write_text(text)
    script = [text for _, language, text in blocks if language == "sh"]
    assert [text.split()[:2] for text in script[:3]] == [["pip", "install"], ["aegis", "up"], ["python", "register.py"]]
    asked = "\n".join(["set -e", "trap 'kill $(jobs -p)' EXIT", *script[:3], THE_REST])
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AEGIS", "PYTHON", "PIP"))}
    environment |= {
        "PATH": f"{programs}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "AEGIS_LISTEN": f"127.0.0.1:{port}",
        "PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_TARGET": str(installed), "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PYTHONPATH": str(installed),
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "-c", asked.replace("CHECKOUT", str(checkout)).replace("127.0.0.1:8484", f"127.0.0.1:{port}")],
        env=environment, cwd=folder, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (installed / "aegisagent/py.typed").exists()
    said = (folder / "said").read_text().splitlines()
    assert said[0].startswith("denied (policy_denied)")
    assert said[1:] == ["refunded 5 for order-7"]
    assert "'amount': 5" in (folder / "shown").read_text()


EXPECTED = {
    "async_tasks.py": ["customer-0 has dana@example.test", "ticket 1: policy_denied"],
    "approval.py": ["waiting for the group security", "refunded 5"],
    "langchain_tools.py": ["c-1 is a customer", "The call was denied: policy_denied"],
    "openai_agents_tools.py": ["c-1 has dana@example.test", "The call was denied: policy_denied"],
    "mcp_session.py": ["what stands in a.txt", "denied (policy_denied)"],
}


@pytest.mark.feature("examples")
@pytest.mark.parametrize("name", EXPECTED)
def test_an_example_does_what_it_says(aegis, tmp_path, name):
    tenant = aegis.tenant().register_tools()
    tenant.settings(automatic_freezes_per_hour=0)
    tools = [{"name": "read_file", "mutates_state": False, "risk": "low"}, {"name": "write_file"}]
    tenant.post("/v1/mcp/servers", {"key": "files", "name": "Files", "tools": tools}).expect(201)
    environment = {variable: value for variable, value in os.environ.items() if not variable.startswith("AEGIS")}
    environment |= {"AEGISAGENT_URL": f"http://127.0.0.1:{aegis.port}", "AEGISAGENT_TOKEN": tenant.register_agent().token}
    approver = tenant.key("approver", "rita", groups=("security",))

    def approve():
        pending = wait_until("somebody asks", lambda: tenant.get("/v1/approvals?status=PENDING").expect(200))
        tenant.post(f"/v1/approvals/{pending[0]['approval_id']}/approve", {}, key=approver).expect(200)

    thread = threading.Thread(target=approve if name == "approval.py" else lambda: None)
    thread.start()
    said = run((PACKAGE / "examples" / name).read_text(), environment, tmp_path)
    thread.join(60)
    for line in EXPECTED[name]:
        assert line in said


@pytest.mark.feature("examples")
def test_every_example_is_run():
    assert {path.name for path in (PACKAGE / "examples").glob("*.py")} == set(EXPECTED)
