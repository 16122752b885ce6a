"""README's commands as a reader copies them: each code block in its order, in one shell, against a program that listens elsewhere."""

import pathlib
import re
import socket
import subprocess
import tempfile
import unittest

from harness import BINARY, CLEAN_ENVIRONMENT, REPOSITORY

SECTION = re.compile(r"^## Run it$(.*?)^## ", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ADDRESS = "127.0.0.1:8484"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def blocks():
    section = SECTION.search((REPOSITORY / "README.md").read_text())
    return BLOCK.findall(section[1])


class Readme(unittest.TestCase):
    def test_the_commands_of_run_it_do_what_the_text_says(self):
        start, *rest = blocks()
        self.assertEqual(
            start.splitlines(), ["cargo build --release", "target/release/aegis up --data ./aegis-data"], "the first block starts it"
        )
        self.assertEqual(len(rest), 3, "make keys and ask; ask as someone inside; look at the evidence")
        port = free_port()
        with tempfile.TemporaryDirectory(prefix="aegis-readme-") as folder:
            folder = pathlib.Path(folder)
            (folder / "target").mkdir()
            (folder / "target/release").symlink_to(BINARY.parent)
            environment = CLEAN_ENVIRONMENT | {"AEGIS_LISTEN": f"127.0.0.1:{port}", "AEGIS_LOG": "error"}
            up = subprocess.Popen(
                start.splitlines()[1].split(), cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            try:
                self.assertIn(f"127.0.0.1:{port}", up.stdout.readline())
                script = "set -eu\n" + "\necho; echo ---\n".join(block.replace(ADDRESS, f"127.0.0.1:{port}") for block in rest)
                done = subprocess.run(
                    ["bash", "-c", script], cwd=folder, env=CLEAN_ENVIRONMENT, capture_output=True, text=True, timeout=60
                )
            finally:
                up.terminate()
                up.wait(30)
                up.stdout.close()
            said = done.stdout.split("---\n")
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            self.assertIn('"decision":"deny"', said[0])
            self.assertIn('"decision":"allow"', said[1])
            self.assertIn("valid: ", said[2])

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
