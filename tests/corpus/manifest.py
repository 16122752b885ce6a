"""No vector that was ever released changes: each corpus folder's manifest.json pins the lines of every release by their SHA-256.

    manifest.py             fails where a pinned line, or a pin that was ever committed, has changed, or a line has no pin
    manifest.py --release   pins what was added since the last release as a new one

A scheme's files only grow. What would have to change belongs to a scheme of another name, in files of its own.
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
# Each folder of corpus/, its scheme, and its files; of index.json each case counts as a line.
FOLDERS = {
    "canonical": ("aegis-jcs-1", ("accepted.jsonl", "rejected.jsonl")),
    "receipts": ("aegis-receipt-1", ("*.jsonl", "index.json", "root.pub")),
}
MANIFEST = "manifest.json"


def lines_of(path: Path) -> list[bytes]:
    if path.name != "index.json":
        return path.read_bytes().splitlines(keepends=True)
    index = json.loads(path.read_bytes())
    return [json.dumps(case, sort_keys=True).encode() + b"\n" for case in index["cases"]]


def digest(lines: list[bytes]) -> str:
    return hashlib.sha256(b"".join(lines)).hexdigest()


def files_of(folder: Path) -> dict[str, list[bytes]]:
    _scheme, patterns = FOLDERS[folder.name]
    return {path.name: lines_of(path) for pattern in patterns for path in sorted(folder.glob(pattern))}


def read_manifest(folder: Path) -> dict:
    path = folder / MANIFEST
    return json.loads(path.read_bytes()) if path.exists() else {"scheme": FOLDERS[folder.name][0], "releases": []}


def broken_pins(folder: Path) -> list[str]:
    """What the folder holds against its manifest."""
    manifest, files = read_manifest(folder), files_of(folder)
    complaints = []
    if manifest["scheme"] != FOLDERS[folder.name][0]:
        complaints.append(f"{folder.name}: the scheme is {manifest['scheme']}, not {FOLDERS[folder.name][0]}")
    newest: dict[str, int] = {}
    for number, release in enumerate(manifest["releases"], start=1):
        if release["release"] != number:
            complaints.append(f"{folder.name}: release {release['release']} stands where {number} should")
        for name, pin in release["files"].items():
            lines = files.get(name, [])
            if pin["lines"] < newest.get(name, 0) or len(lines) < pin["lines"]:
                complaints.append(f"{folder.name}/{name}: it has fewer lines than release {number} pins, {pin['lines']}")
            elif digest(lines[: pin["lines"]]) != pin["sha256"]:
                complaints.append(f"{folder.name}/{name}: a line of release {number} has changed (lines {newest.get(name, 0) + 1} to {pin['lines']})")
            newest[name] = pin["lines"]
    for name, lines in files.items():
        if len(lines) > newest.get(name, 0):
            added = len(lines) - newest.get(name, 0)
            complaints.append(f"{folder.name}/{name}: {added} lines have no release; run tests/corpus/manifest.py --release")
    return complaints


def git(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["git", "-C", folder, *arguments], capture_output=True, check=False)


def forgotten_releases(folder: Path) -> list[str] | None:
    """What any committed manifest pins and today's does not; None where there is no whole history to ask."""
    log = git(folder, "log", "--format=%H", "--", MANIFEST)
    if log.returncode != 0 or git(folder, "rev-parse", "--is-shallow-repository").stdout.strip() != b"false":
        return None
    today = read_manifest(folder)["releases"]
    complaints = []
    for commit in log.stdout.decode().split():
        shown = git(folder, "show", f"{commit}:./{MANIFEST}")
        if shown.returncode != 0:
            continue  # the commit removed it
        then = json.loads(shown.stdout)["releases"]
        if today[: len(then)] != then:
            complaints.append(f"{folder.name}: a release that {commit[:12]} has pinned is pinned otherwise now")
    return complaints


def add_release(folder: Path) -> bool:
    """Pins what has grown since the last release; False if nothing has."""
    manifest = read_manifest(folder)
    pinned = {name: pin for release in manifest["releases"] for name, pin in release["files"].items()}
    pins = {name: {"lines": len(lines), "sha256": digest(lines)} for name, lines in files_of(folder).items()}
    grown = {name: pin for name, pin in pins.items() if pinned.get(name) != pin}
    if grown:
        manifest["releases"].append({"release": len(manifest["releases"]) + 1, "files": grown})
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return bool(grown)


def main() -> int:
    if sys.argv[1:] not in ([], ["--release"]):
        print("usage: manifest.py [--release]", file=sys.stderr)
        return 2
    complaints = []
    for name in FOLDERS:
        folder = REPOSITORY / "corpus" / name
        if sys.argv[1:]:
            unpinned = [complaint for complaint in broken_pins(folder) if "have no release" not in complaint]
            complaints += unpinned
            if not unpinned:
                print(f"{name}: {'a release was added' if add_release(folder) else 'nothing new'}")
            continue
        complaints += broken_pins(folder)
        forgotten = forgotten_releases(folder)
        complaints += forgotten or []
        releases = len(read_manifest(folder)["releases"])
        print(f"{name}: {releases} releases, {'their history not looked at (no whole git history here)' if forgotten is None else 'as they were committed'}")
    for complaint in complaints:
        print(f"CHANGED {complaint}", file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
