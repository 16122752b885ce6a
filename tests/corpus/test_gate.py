"""The gate can fail: a language that says one thing otherwise, or nothing, and a vector that changed, are found and shown."""

import base64
import contextlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import differences
import fuzz
import languages
import manifest

HERE = Path(__file__).resolve().parent
# Says what Python says, but for what LIE names: {"id": another answer, or null for silence}.
STAND_IN = """
import { spawnSync } from "node:child_process";
const lies = JSON.parse(process.env.LIE);
const python = spawnSync(process.env.PYTHON, [process.env.TOOL, ...process.argv.slice(2)], { encoding: "utf8", maxBuffer: 1 << 26 });
for (const line of python.stdout.trimEnd().split("\\n")) {
  const { id, ...truth } = JSON.parse(line);
  const answer = id in lies ? lies[id] : truth;
  if (answer) console.log(JSON.stringify({ id, ...answer }));
}
"""


class Gate(unittest.TestCase):
    """The whole program, with a stand-in in the place of the TypeScript SDK."""

    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        (self.folder / "tools").mkdir()
        (self.folder / "tools" / "corpus.mjs").write_text(STAND_IN, encoding="utf-8")

    def gate(self, lies: dict, without: str = "rust,go") -> subprocess.CompletedProcess:
        places = {"AEGIS_CORPUS_TYPESCRIPT": str(self.folder), "AEGIS_CORPUS_GO": str(self.folder / "nowhere")}
        environment = os.environ | places | {languages.WITHOUT: without, "LIE": json.dumps(lies)}
        environment |= {"PYTHON": sys.executable, "TOOL": str(languages.sdk_folder("python") / "tools" / "corpus.py")}
        environment["PYTHONPATH"] = str(languages.sdk_folder("python") / "src")
        return subprocess.run([sys.executable, HERE / "gate.py"], env=environment, capture_output=True, text=True, check=False)

    def test_every_answer_that_differs_and_no_other_is_printed_with_its_vector(self) -> None:
        lies = {
            "key-edges-007": {"canonical_sha256": "0" * 64},
            "binades-003": {"reason": "number_out_of_range"},
            "fault-order-011": {"reason": "syntax"},
            "latin-escapes-200": None,
            "links-002": {"exit": 0, "report": None},
            "signatures-003": None,
        }
        done = self.gate(lies)
        self.assertEqual(done.returncode, 1, done.stdout)
        shown = [line.split()[1] for line in done.stderr.splitlines() if line.startswith("DIFFERENCE")]
        self.assertEqual(sorted(shown), sorted(lies))
        self.assertIn(f"typescript  {'0' * 64}", done.stderr)
        self.assertIn(f"typescript  {differences.NO_ANSWER}", done.stderr)
        # So that it can be read, and copied: an input stands there as it is.
        vector = self.vector("key-edges-007")
        shown = differences.escaped(base64.b64decode(vector["input"]))
        self.assertIn(f"  input       {shown}\n  in base64   {vector['input']}\n", done.stderr)

    def vector(self, name: str) -> dict:
        return next(one for one in languages.lines_of(fuzz.TEXTS.files) if one["id"] == name)

    def test_a_missing_language_fails_unless_it_is_named(self) -> None:
        done = self.gate({}, without="rust")
        self.assertEqual(done.returncode, 2)
        self.assertIn("missing: go", done.stderr)
        self.assertEqual(self.gate({}, without="rust,go,cobol").returncode, 2)
        self.assertEqual(self.gate({}, without="rust,go,typescript").returncode, 2)


class Agreement(unittest.TestCase):
    def test_one_true_and_a_double_are_three_answers(self) -> None:
        for other in (True, 1.0, "1", None, {"exit": 1}):
            self.assertFalse(differences.agree("x", {"a": {"x": 1}, "b": {"x": other}}), other)
        self.assertFalse(differences.agree("x", {"a": {}, "b": {}}))
        self.assertTrue(differences.agree("x", {"a": {"x": {"p": 1, "q": 2}}, "b": {"x": {"q": 2, "p": 1}}}))

    def test_a_difference_that_fuzzing_finds_is_made_smaller(self) -> None:
        def says(taken: bytes):
            return lambda files: {one["id"]: "bad" if taken in base64.b64decode(one["input"]) else "good" for one in languages.lines_of(files)}

        pair = [languages.Language("one", says(b"!?"), dict), languages.Language("other", says(b"no such text"), dict)]
        found = fuzz.entry("1", b"x" * 500 + b"!?" + b"y" * 700, {"class": "text"})
        small = fuzz.smaller(found, pair)
        self.assertEqual(base64.b64decode(small["input"]), b"!?")

    def test_fuzzing_fails_on_a_difference_and_says_how_to_make_it_again(self) -> None:
        def length(files: list[Path]) -> languages.Answers:
            return {one["id"]: len(base64.b64decode(one["input"])) for one in languages.lines_of(files)}

        def silence(_files: list[Path]) -> languages.Answers:
            return {}

        one, same = (languages.Language(name, length, length) for name in ("one", "same"))
        other = languages.Language("other", silence, silence)
        for subject in (fuzz.TEXTS, fuzz.EXPORTS):
            said = io.StringIO()
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                self.assertEqual(fuzz.fuzz("7", subject, [one, same], batches=1, seconds=0), 0)
                self.assertEqual(fuzz.fuzz("7", subject, [one, other], batches=1, seconds=0), 1)
            self.assertIn("--seed 7 --batches 1", said.getvalue())
            self.assertIn("DIFFERENCE 7/0/", said.getvalue())

    def test_a_seed_makes_the_same_inputs_again(self) -> None:
        for subject in (fuzz.TEXTS, fuzz.EXPORTS):
            inputs = [base64.b64decode(one["input"]) for one in languages.lines_of(subject.files)[::50]]
            made = [subject.batch(random.Random("7/0"), inputs, 60) for _ in range(2)]
            self.assertEqual(*made)
            self.assertNotEqual(made[0], subject.batch(random.Random("7/1"), inputs, 60))


class Manifest(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory())) / "canonical"
        shutil.copytree(languages.REPOSITORY / "corpus" / "canonical", self.folder)
        self.file = self.folder / "accepted.jsonl"
        self.lines = self.file.read_text(encoding="utf-8").splitlines(keepends=True)

    def complaints_after(self, lines: list[str]) -> str:
        self.file.write_text("".join(lines), encoding="utf-8")
        return "\n".join(manifest.broken_pins(self.folder))

    def test_no_stored_line_can_change_vanish_or_move(self) -> None:
        self.assertEqual(self.complaints_after(self.lines), "")
        for place in [0, len(self.lines) - 1, *random.Random(1).sample(range(len(self.lines)), 5)]:
            changed = self.lines[place].replace('"description":"', '"description":"!')
            self.assertIn("has changed", self.complaints_after([*self.lines[:place], changed, *self.lines[place + 1 :]]))
        self.assertIn("fewer lines", self.complaints_after(self.lines[:-1]))
        self.assertIn("has changed", self.complaints_after([self.lines[1], self.lines[0], *self.lines[2:]]))
        self.assertIn("1 lines have no release", self.complaints_after([*self.lines, self.lines[0]]))

    def test_a_release_can_be_added_and_none_made_anew(self) -> None:
        def git(*arguments: str) -> None:
            named = ["-c", "user.name=test", "-c", "user.email=test@example.test", "-c", "commit.gpgsign=false"]
            subprocess.run(["git", "-C", self.folder, *named, *arguments], check=True, capture_output=True)

        git("init", "--quiet")
        git("add", ".")
        git("commit", "--quiet", "--message", "as it is")
        self.complaints_after([*self.lines, self.lines[0].replace("-001", "-001-again")])
        self.assertTrue(manifest.add_release(self.folder))
        self.assertEqual((manifest.broken_pins(self.folder), manifest.forgotten_releases(self.folder)), ([], []))
        # Somebody changes a vector and pins all of it anew.
        self.complaints_after([self.lines[0].replace("interop", "INTEROP"), *self.lines[1:]])
        (self.folder / manifest.MANIFEST).unlink()
        self.assertTrue(manifest.add_release(self.folder))
        self.assertEqual(manifest.broken_pins(self.folder), [])
        self.assertEqual(len(manifest.forgotten_releases(self.folder) or []), 1)


if __name__ == "__main__":
    unittest.main()
