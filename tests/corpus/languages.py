"""The languages that must agree, and how each is asked: Rust through the program, every SDK through a tool that reads corpus files.

A tool gets files of vectors and prints, for each line of them and in their order, one JSON object: `{"id", "canonical_sha256"}` or
`{"id", "reason"}`. With `--receipts` first, `{"id", "exit", "report"}`.
"""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
# Languages, separated by commas, that may be missing.
WITHOUT = "AEGIS_CORPUS_WITHOUT"
# No batch takes as long.
PATIENCE_S = 600

Answers = dict[str, object]


class CannotAnswer(Exception):
    """A language gave no usable answers."""


@dataclass(frozen=True)
class Language:
    """`canonical` answers files of vectors with a hash or a reason for each id, `receipts` files of cases with exit code and report."""

    name: str
    canonical: Callable[[list[Path]], Answers]
    receipts: Callable[[list[Path]], Answers]


def lines_of(files: list[Path]) -> list[dict]:
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def run(command: list[str], *, data: bytes = b"", cwd: Path | None = None, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    try:
        return subprocess.run(command, input=data, capture_output=True, cwd=cwd, env=environment, timeout=PATIENCE_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotAnswer(f"{command[0]}: {error}") from None


def output_of(command: list[str], **how) -> bytes:
    done = run(command, **how)
    if done.returncode != 0:
        raise CannotAnswer(f"{' '.join(command[:3])} exits {done.returncode}: {done.stderr.decode(errors='replace')[-2000:]}")
    return done.stdout


# --- Rust: the program ----------------------------------------------------------------------------------------------------


def rust() -> Language | None:
    program = os.environ.get("AEGIS_BIN", "")
    if not os.access(program, os.X_OK):
        return None
    return Language("rust", lambda files: rust_canonical(program, files), lambda files: rust_receipts(program, files))


def rust_canonical(program: str, files: list[Path]) -> Answers:
    vectors = lines_of(files)
    asked = []
    for vector in vectors:
        limit = vector.get("limits", {}).get("max_bytes")
        asked.append(base64.b64decode(vector["input"]).hex() + ("" if limit is None else f" {limit}"))
    answered = output_of([program, "canon", "--each-line"], data="".join(line + "\n" for line in asked).encode()).decode().splitlines()
    if len(answered) != len(vectors):
        raise CannotAnswer(f"{program} answered {len(answered)} of {len(vectors)} texts")
    return {vector["id"]: answer for vector, answer in zip(vectors, answered, strict=True)}


def rust_receipts(program: str, files: list[Path]) -> Answers:
    verifier = str(Path(program).with_name("aegis-verify-receipts"))
    cases = lines_of(files)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return dict(pool.map(lambda case: (case["id"], rust_verdict(verifier, case)), cases))


def rust_verdict(verifier: str, case: dict) -> dict:
    roots = [f"--root={root}" for root in case["roots"]]
    done = run([verifier, "-", "--json", *roots], data=base64.b64decode(case["input"]))
    report = json.loads(done.stdout) if done.stdout else None
    return {"exit": done.returncode, "report": without_message(report)}


def without_message(report: dict | None) -> dict | None:
    """What a failure says to people is each language's own."""
    if report is not None and report["failure"] is not None:
        report["failure"].pop("message", None)
    return report


# --- SDKs: a tool each ----------------------------------------------------------------------------------------------------


def sdk_folder(name: str) -> Path:
    """Of this repository, or where AEGIS_CORPUS_<NAME> says: an SDK that is being written in another checkout."""
    return Path(os.environ.get(f"AEGIS_CORPUS_{name.upper()}", REPOSITORY / "sdks" / name))


def python() -> Language | None:
    folder = sdk_folder("python")
    environment = os.environ | {"PYTHONPATH": str(folder / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    return by_tool("python", folder / "tools" / "corpus.py", [sys.executable, str(folder / "tools" / "corpus.py")], environment=environment)


def typescript() -> Language | None:
    folder = sdk_folder("typescript")
    tool = folder / "tools" / "corpus.mjs"
    if (folder / "src").is_dir():
        build_typescript(folder)
    return by_tool("typescript", tool, ["node", str(tool)])


def build_typescript(folder: Path) -> None:
    """Compiles the package where its sources are newer than what was compiled."""
    built = folder / "dist" / "index.js"
    sources = [path.stat().st_mtime for path in (folder / "src").rglob("*.ts")]
    if built.exists() and built.stat().st_mtime >= max(sources, default=0):
        return
    compiler = folder / "node_modules" / "typescript" / "bin" / "tsc"
    if not compiler.exists():
        output_of(["npm", "ci", "--silent", "--no-audit", "--no-fund"], cwd=folder)
    output_of(["node", str(compiler)], cwd=folder)


def go() -> Language | None:
    folder = sdk_folder("go")
    if not (folder / "internal" / "cmd" / "corpus").is_dir():
        return None
    built = Path(os.environ.get("AEGIS_CACHE", Path.home() / ".cache" / "aegis")) / "bin" / "corpus-go"
    built.parent.mkdir(parents=True, exist_ok=True)
    output_of(["go", "build", "-o", str(built), "./internal/cmd/corpus"], cwd=folder)
    return by_tool("go", built, [str(built)])


def by_tool(name: str, needed: Path, command: list[str], **how) -> Language | None:
    if not needed.exists():
        return None
    return Language(
        name,
        lambda files: {line["id"]: answer_of(line) for line in tool_lines(name, [*command, *map(str, files)], **how)},
        lambda files: {line.pop("id"): line for line in tool_lines(name, [*command, "--receipts", *map(str, files)], **how)},
    )


def answer_of(line: dict) -> object:
    return line.get("canonical_sha256", line.get("reason"))


def tool_lines(name: str, command: list[str], **how) -> list[dict]:
    try:
        return [json.loads(line) for line in output_of(command, **how).splitlines()]
    except ValueError as error:
        raise CannotAnswer(f"{name}: an answer is not a JSON line: {error}") from None


def all_of_them() -> list[Language]:
    """Every language; CannotAnswer where one is missing that must not be."""
    allowed = {name for name in os.environ.get(WITHOUT, "").split(",") if name}
    makers = {"rust": rust, "python": python, "typescript": typescript, "go": go}
    if unknown := allowed - makers.keys():
        raise CannotAnswer(f"{WITHOUT} names {', '.join(sorted(unknown))}; there are {', '.join(makers)}")
    languages, missing = [], []
    for name, make in makers.items():
        language = None if name in allowed else make()
        if language is not None:
            languages.append(language)
        elif name in allowed:
            print(f"{name}: left out, as {WITHOUT} says")
        else:
            missing.append(name)
    if missing:
        raise CannotAnswer(f"missing: {', '.join(missing)} (Rust: set AEGIS_BIN to the built program). To go on without, set {WITHOUT}={','.join(missing)}")
    if len(languages) < 2:
        raise CannotAnswer("one language agrees with itself; leave fewer out")
    return languages
