"""`make fleet` and `make fleet-down`, as a reader types them: what it says runs, the commands that it shows do what it says of them, and nothing is
left behind."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import textwrap
import unittest

from case import SERVER
from waiting import wait_until

PLAY = pathlib.Path(__file__).with_name("play.py")
# It is waited for by `play.py` itself, which gives up before.
ENDS_WITHIN_S = 420
DONE_WITHIN_S = 60


def running_in(folder):
    """The processes whose command line names the folder."""
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(folder) in command:
                yield f"{entry.name} {command.replace(bytes(1), b' ').decode(errors='replace')}"


class Play(unittest.TestCase):
    def setUp(self):
        outer = tempfile.TemporaryDirectory(prefix="aegis-play-")
        self.addCleanup(outer.cleanup)
        self.folder = pathlib.Path(outer.name).resolve() / "fleet"
        self.environment = os.environ | {"AEGIS_FLEET_DATA": str(self.folder), "AEGIS_FLEET_NATS": SERVER}
        self.addCleanup(self.play, "down")

    def play(self, action):
        command = [sys.executable, PLAY, action]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=ENDS_WITHIN_S)

    def shell(self, script):
        return subprocess.run(["bash", "-c", script], cwd="/", capture_output=True, text=True, timeout=DONE_WITHIN_S)

    def test_a_fleet_to_play_with_does_what_it_says_and_leaves_nothing(self):
        up = self.play("up")
        self.assertEqual(up.returncode, 0, up.stdout + up.stderr)
        again = self.play("up")
        self.assertEqual(again.returncode, 0, again.stdout + again.stderr)
        self.assertTrue(up.stdout.endswith(again.stdout), "a second one says what runs, and starts nothing")

        shown = textwrap.dedent(again.stdout.partition("Try next:\n\n")[2].partition("\nStop it")[0])
        variables, ask, freeze, edges, kill = shown.split("# ")
        # The first line of each says what it is for.
        ask, freeze, edges, kill = (f"{variables}{part.partition(chr(10))[2]}" for part in (ask, freeze, edges, kill))

        def answers(script, word):
            return wait_until(f"it answers `{word}`", lambda: word in self.shell(script).stdout, DONE_WITHIN_S)

        answers(ask, '"decision":"allow"')
        frozen = self.shell(freeze)
        self.assertIn("I try it", frozen.stdout, frozen.stderr)
        for edge in ("$EDGE_1/", "$EDGE_2/"):
            answers(ask.replace("$EDGE_1/", edge), "agent_frozen")
        live = lambda: {edge["edge_id"] for edge in json.loads(self.shell(edges).stdout) if edge["live"]}
        wait_until("both edges are heard", lambda: live() == {"edge-1", "edge-2"}, DONE_WITHIN_S)
        self.assertEqual(self.shell(kill).returncode, 0, kill)
        answers(ask, "agent_frozen")

        outside = json.loads((self.folder / "supervisor.json").read_text())["folders"]
        self.assertTrue(list(running_in(self.folder)), "something ran")
        down = self.play("down")
        self.assertEqual(down.returncode, 0, down.stdout + down.stderr)
        self.assertIn("removed", down.stdout)
        for folder in (str(self.folder), *outside):
            self.assertFalse(pathlib.Path(folder).exists(), folder)
            wait_until(f"no process names {folder}", lambda folder=folder: not list(running_in(folder)), DONE_WITHIN_S)
        self.assertIn("nothing runs", self.play("down").stdout)
