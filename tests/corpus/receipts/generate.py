"""Makes corpus/receipts/cases.jsonl from the ledger's own export, with seeds that everybody knows.

    generate.py           appends the cases that the file does not have yet; refuses to change or drop one it has
    generate.py --check   writes nothing, and fails if the file is not exactly what this program makes

What a case must be judged as follows from how it was made; no verifier is asked. New cases stand behind those of the release before.
"""

import json
import sys

import chains
import forms
import roots
import sealing
import tampered
import years

CASES = sealing.FOLDER / "cases.jsonl"
CLASSES = tampered.CLASSES + chains.CLASSES + forms.CLASSES + roots.CLASSES + years.CLASSES


def vectors() -> list[dict]:
    made = []
    for make in CLASSES:
        name = make.__name__.replace("_", "-")
        made += [case.vector(f"{name}-{number:03}", name) for number, case in enumerate(make(), start=1)]
    assert len({vector["id"] for vector in made}) == len(made), "two cases have one id"
    return made


def main() -> int:
    if sys.argv[1:] not in ([], ["--check"]):
        print("usage: generate.py [--check]", file=sys.stderr)
        return 2
    stored = CASES.read_text(encoding="utf-8").splitlines() if CASES.exists() else []
    made = [json.dumps(vector, ensure_ascii=False, separators=(",", ":")) for vector in vectors()]
    for number, (old, new) in enumerate(zip(stored, made, strict=False), start=1):
        if old != new:
            print(f"cases.jsonl: line {number} would change\n  stored {old[:200]}\n  made   {new[:200]}", file=sys.stderr)
            return 1
    if len(stored) > len(made):
        print(f"cases.jsonl: {len(stored) - len(made)} cases would vanish", file=sys.stderr)
        return 1
    if sys.argv[1:] and len(stored) < len(made):
        print(f"cases.jsonl: {len(made) - len(stored)} cases are missing; run generate.py", file=sys.stderr)
        return 1
    if not sys.argv[1:]:
        CASES.write_text("".join(text + "\n" for text in made), encoding="utf-8")
    print(f"cases.jsonl: {len(made)} cases, {len(made) - len(stored)} of them new")
    return 0


if __name__ == "__main__":
    sys.exit(main())
