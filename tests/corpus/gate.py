"""Every language against the corpus, vector by vector and case by case. A difference prints the vector and what each language said.

gate.py    exit 0 all agree, 1 they differ, 2 a language is missing or cannot answer
"""

import base64
import json
import sys
import tempfile
from pathlib import Path

import differences
import languages

sys.path.append(str(languages.REPOSITORY / "tests" / "canonical"))
import large  # noqa: E402

CORPUS = languages.REPOSITORY / "corpus"
VECTORS = [CORPUS / "canonical" / "accepted.jsonl", CORPUS / "canonical" / "rejected.jsonl"]
CASES = [CORPUS / "receipts" / "cases.jsonl"]
EXPORTS = CORPUS / "receipts" / "index.json"
LEAST_VECTORS, LEAST_CASES = 10_000, 300


def expected_vectors() -> tuple[list[dict], languages.Answers]:
    vectors = languages.lines_of(VECTORS)
    if len(vectors) < LEAST_VECTORS:
        raise languages.CannotAnswer(f"the corpus is incomplete: {len(vectors)} vectors")
    return vectors, answers_of(vectors)


def answers_of(vectors: list[dict]) -> languages.Answers:
    return {vector["id"]: vector.get("sha256", vector.get("reason")) for vector in vectors}


def expected_cases() -> tuple[list[dict], languages.Answers]:
    cases = languages.lines_of(CASES)
    if len(cases) < LEAST_CASES:
        raise languages.CannotAnswer(f"the corpus is incomplete: {len(cases)} cases of receipts")
    return cases, {case["id"]: {"exit": case["exit"], "report": case["report"]} for case in cases}


def exports() -> tuple[list[dict], languages.Answers]:
    """The ledger's own exports, in the form of cases; of them the index knows the verdict and the failure."""
    index = json.loads(EXPORTS.read_bytes())
    entries, expected = [], {}
    for case in index["cases"]:
        name = f"{case['file']}, {'pinned' if case['root_pinned'] else 'not pinned'}"
        data = base64.b64encode((EXPORTS.parent / case["file"]).read_bytes()).decode()
        roots = [index["root"]] if case["root_pinned"] else []
        entries.append({"id": name, "class": "exports", "description": case["about"], "roots": roots, "input": data})
        expected[name] = {"exit": int(case["verdict"] == "invalid"), "verdict": case["verdict"], "failure": case["failure"]}
    return entries, expected


def what_an_index_knows(answer: object) -> object:
    """Verdict and failure of a report."""
    report = answer["report"] if isinstance(answer, dict) else None
    return answer if report is None else {"exit": answer["exit"], "verdict": report["verdict"], "failure": report["failure"]}


def written(entries: list[dict], folder: str) -> list[Path]:
    path = Path(folder) / "entries.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return [path]


def compare(what: str, entries: list[dict], expected: languages.Answers, asked: dict[str, languages.Answers]) -> int:
    """Prints what differs, and how many did."""
    answers = {"corpus": expected} | asked
    different = [entry for entry in entries if not differences.agree(entry["id"], answers)]
    for entry in different[: differences.SHOWN]:
        print(differences.described(entry, answers), file=sys.stderr)
    if len(different) > differences.SHOWN:
        print(f"... and {len(different) - differences.SHOWN} more {what}", file=sys.stderr)
    for name, answer in asked.items():
        strangers = answer.keys() - expected.keys()
        if strangers:
            print(f"{name} answered about {len(strangers)} {what} that it was not asked about", file=sys.stderr)
            different += [{"id": stranger} for stranger in strangers]
    print(f"{len(entries)} {what}: {', '.join(asked)} {'agree' if not different else f'differ on {len(different)}'}")
    return len(different)


def judge(taking_part: list[languages.Language]) -> int:
    """How many differences there are."""
    vectors, canonical = expected_vectors()
    found = compare("canonicalisation vectors", vectors, canonical, {one.name: one.canonical(VECTORS) for one in taking_part})
    with tempfile.TemporaryDirectory() as folder:
        vectors = large.vectors()
        files = written(vectors, folder)
        found += compare("texts at the size limit", vectors, answers_of(vectors), {one.name: one.canonical(files) for one in taking_part})
        entries, verdicts = exports()
        files = written(entries, folder)
        asked = {one.name: {name: what_an_index_knows(answer) for name, answer in one.receipts(files).items()} for one in taking_part}
        found += compare("exports of the ledger", entries, verdicts, asked)
    cases, verdicts = expected_cases()
    return found + compare("cases of receipts", cases, verdicts, {one.name: one.receipts(CASES) for one in taking_part})


def main() -> int:
    try:
        return 1 if judge(languages.all_of_them()) else 0
    except languages.CannotAnswer as error:
        print(f"corpus: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
