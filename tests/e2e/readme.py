"""README's commands as a reader copies them: each code block in its order, in one shell, against a program that listens elsewhere; that the
demo says what README shows of it; and how the READMEs of the SDKs install them."""

import json
import os
import pathlib
import re
import subprocess
import tempfile
import threading
import unittest

from ed25519 import SigningKey
from harness import BINARY, CLEAN_ENVIRONMENT, REPOSITORY
from nats import CURRENT, free_port
from waiting import DEADLINE_S, wait_until

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What two runs of the demo do not share: ids and hashes, address and folder, times, and how many receipts are sealed by the time of the export.
VARYING = re.compile(
    r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b|\b(?:[0-9a-f]{12}|[0-9a-f]{16}|[0-9a-f]{64})\b"
    r"|(?<=127\.0\.0\.1:)\d+|(?<=^state ).*"
    r"|\d+\.\d(?= ms)|\d+(?= (?:receipts|proofs|lanes)\b)|(?<=line )\d+|(?<=seq )\d+|(?<=\"seq\":)\d+",
    re.MULTILINE,
)


def blocks(section, language="sh"):
    """The code blocks of a section."""
    text = (REPOSITORY / "README.md").read_text()
    found = BLOCK.findall(re.search(rf"^## {section}$(.*?)^## ", text, re.MULTILINE | re.DOTALL)[1])
    return [block for written_in, block in found if written_in == language]


class Folder:
    """An empty folder with the program in `target/release`, as after a build, and programs that run in it."""

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="aegis-readme-")
        self.path = pathlib.Path(self._folder.name)
        (self.path / "target").mkdir()
        (self.path / "target/release").symlink_to(BINARY.parent)
        self.ports = {f"127.0.0.1:{named}": f"127.0.0.1:{free_port()}" for named in ("8484", "8585", "4222")}
        self.environment = CLEAN_ENVIRONMENT | {
            "AEGIS_LISTEN": self.ports["127.0.0.1:8484"], "AEGIS_LOG": "error",
            "PATH": f"{BINARY.parent}:{CURRENT.parent}:{os.environ['PATH']}",
        }
        self._running = []

    def put_ports(self, text):
        for named, free in self.ports.items():
            text = text.replace(named, free)
        return text.replace("-p 4222", f"-p {self.ports['127.0.0.1:4222'].split(':')[1]}")

    def start(self, command):
        """Runs a command that goes on, and returns the first line it prints."""
        process = subprocess.Popen(
            self.put_ports(command).split(), cwd=self.path, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._running.append(process)
        return process

    def run(self, script):
        return subprocess.run(
            ["bash", "-c", "set -eu -o pipefail\n" + self.put_ports(script)],
            cwd=self.path, env=self.environment, capture_output=True, text=True, timeout=300,
        )

    def stop(self, process):
        self._running.remove(process)
        process.terminate()
        process.wait(DEADLINE_S)
        process.stdout.close()

    def close(self):
        for process in list(self._running):
            self.stop(process)
        self._folder.cleanup()


class Readme(unittest.TestCase):
    def test_the_demo_says_what_the_text_shows(self):
        """Each step, check and proof in its order, and how many checks there are."""
        [command], [shown] = blocks("Try it"), blocks("Try it", "text")
        self.assertEqual(command.strip(), "cargo run --release -- demo")
        done = subprocess.run([BINARY, "demo"], env=CLEAN_ENVIRONMENT, capture_output=True, text=True, timeout=300)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.maxDiff = None
        self.assertEqual(VARYING.sub("…", shown).splitlines(), VARYING.sub("…", done.stdout).splitlines(), "the text, and what the demo says")
        checks = len(re.findall(r"^   ok   ", shown, re.MULTILINE))
        self.assertEqual(shown.splitlines()[-1], f"demo: {checks} checks passed, 0 failed")

    def test_a_demo_of_which_a_check_fails_says_so_and_exits_with_1(self):
        """Once it has written the edge's public key another one lies there, so that its own export is not what the pinned keys vouch for."""
        folder = tempfile.TemporaryDirectory(prefix="aegis-demo-")
        self.addCleanup(folder.cleanup)
        key = pathlib.Path(folder.name) / "keys/edge.pub"
        key.parent.mkdir(mode=0o700)
        os.mkfifo(key)
        another = key.with_name("another.pub")
        another.write_text(f"{SigningKey(bytes(32)).public_base64()}\n")

        def swap():
            # Opens when the program opens it to write.
            with key.open() as written:
                another.replace(key)
                written.read()

        threading.Thread(target=swap, daemon=True).start()
        done = subprocess.run([BINARY, "demo", "--keep", folder.name], env=CLEAN_ENVIRONMENT, capture_output=True, text=True, timeout=300)
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        failed = re.findall(r"^   FAIL (.*)$", done.stdout, re.MULTILINE)
        self.assertIn("the export is valid under the pinned keys", failed)
        self.assertRegex(done.stdout.splitlines()[-1], rf"^demo: \d+ checks passed, {len(failed)} failed$")

    def test_the_commands_of_run_it_do_what_the_text_says(self):
        start, *rest = blocks("Run it")
        self.assertEqual(
            start.splitlines(), ["cargo build --release", "target/release/aegis up --data ./aegis-data"], "the first block starts it"
        )
        self.assertEqual(len(rest), 3, "make keys and ask; ask as someone inside; look at the evidence")
        folder = Folder()
        self.addCleanup(folder.close)
        up = folder.start(start.splitlines()[1])
        self.assertIn(folder.ports["127.0.0.1:8484"], up.stdout.readline())
        done = folder.run("\necho; echo ---\n".join(rest))
        said = done.stdout.split("---\n")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn('"decision":"deny"', said[0])
        self.assertIn('"decision":"allow"', said[1])
        self.assertIn("valid: ", said[2])

    def test_the_commands_of_growing_past_one_machine_do_what_the_text_says(self):
        start, ask, *_ = blocks("Run it")
        first, edge, ask_the_edge = blocks("Growing past one machine")
        folder = Folder()
        self.addCleanup(folder.close)
        up = folder.start(start.splitlines()[1])
        self.assertIn("listening", up.stdout.readline())
        asked = folder.run(f"{ask}\necho \"$TOKEN\" > token")
        self.assertEqual(asked.returncode, 0, asked.stderr)
        folder.stop(up)

        *prepare, server, apply, control = first.splitlines()
        prepared = folder.run("\n".join(prepare))
        self.assertEqual(prepared.returncode, 0, prepared.stderr)
        self.assertTrue(server.endswith(" &"), "the text's server goes on behind")
        folder.start(server.removesuffix(" &"))
        wait_until("the streams are made", lambda: folder.run(apply).returncode == 0)
        self.assertIn("listening", folder.start(f"env {control}").stdout.readline())
        enroll, reload, run = edge.splitlines()
        enrolled = folder.run(enroll)
        self.assertEqual(enrolled.returncode, 0, enrolled.stderr)
        reloaded = folder.run(reload)
        self.assertEqual(reloaded.returncode, 0, reloaded.stderr)
        self.assertIn("listening on http://" + folder.ports["127.0.0.1:8585"], folder.start(run).stdout.readline())
        answer = folder.run(f"TOKEN=$(cat token)\n{ask_the_edge}")
        self.assertIn('"decision":"allow"', answer.stdout, answer.stderr)

    def test_the_commands_that_are_named_exist(self):
        text = (REPOSITORY / "README.md").read_text()
        listed = re.search(r"^Commands: (.*?)\. `--help`", text, re.MULTILINE | re.DOTALL)[1]
        for command in re.findall(r"`([^`]+)`", listed):
            program, *words = command.split()
            for word in words[-1].split("|") if words else [None]:
                arguments = [*words[:-1], word, "--help"] if word else ["--help"]
                shown = subprocess.run([BINARY.with_name(program), *arguments], capture_output=True, text=True)
                self.assertEqual(shown.returncode, 0, f"{command}: {shown.stderr}")
                self.assertIn("Usage:", shown.stdout)

    def test_an_sdk_is_installed_from_the_checkout(self):
        """Their names in registries are nobody's yet, so a command that fetched one would run whatever a stranger puts there."""
        package = json.loads((REPOSITORY / "sdks/typescript/package.json").read_text())
        packed = f"{package['name']}-{package['version']}.tgz"
        module = (REPOSITORY / "sdks/go/go.mod").read_text().split()[1]
        expected = {
            "python": ["pip install CHECKOUT/sdks/python"],
            "typescript": ["(cd CHECKOUT/sdks/typescript && ./build.sh && npm pack)", f"npm install CHECKOUT/sdks/typescript/{packed}"],
            "go": [f"go mod edit -require {module}@v0.0.0 -replace {module}=CHECKOUT/sdks/go"],
        }
        for language, commands in expected.items():
            text = (REPOSITORY / "sdks" / language / "README.md").read_text()
            self.assertEqual(BLOCK.search(text)[2].splitlines(), commands, language)
            fetched = re.findall(r"(?:pip|npm) (?:install|i) (?!CHECKOUT)\S+|go (?:get|install) \S+", text)
            self.assertEqual(fetched, [], language)
