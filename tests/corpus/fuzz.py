"""Differential fuzzing: random inputs, and every language must say the same. A difference is printed with its seed, and made smaller.

    fuzz.py [--receipts] [--seconds S | --batches N] [--seed SEED]

Texts for the canonical form, or exports of receipts. A seed with the same number of batches makes the same inputs again. Exit 0 all
agree, 1 they differ, 2 a language is missing or cannot answer.
"""

import argparse
import base64
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import differences
import gate
import languages
import mutate
import mutate_receipts

# Longer inputs of the corpus are not mutated.
LONGEST = 16_384
# Rounds of making a difference smaller, and candidates in each.
ROUNDS, CANDIDATES = 60, 120
HASH_DIGITS = 64


@dataclass(frozen=True)
class Subject:
    """What is fuzzed: the question to a language, the corpus files it starts from, who makes a batch, and how many inputs are one."""

    question: str
    files: list[Path]
    batch: Callable[[random.Random, list[bytes], int], list[dict]]
    size: int


TEXTS = Subject("canonical", gate.VECTORS, mutate.batch, 4000)
EXPORTS = Subject("receipts", gate.CASES, mutate_receipts.batch, 500)


def entry(number: str, data: bytes, fields: dict) -> dict:
    return {"id": number, "input": base64.b64encode(data).decode(), **fields}


def ask(taking_part: list[languages.Language], entries: list[dict], subject: Subject | None = None) -> dict[str, languages.Answers]:
    subject = subject or TEXTS
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as file:
        file.writelines(json.dumps(one) + "\n" for one in entries)
        file.flush()
        return {language.name: getattr(language, subject.question)([Path(file.name)]) for language in taking_part}


def smaller(found: dict, taking_part: list[languages.Language]) -> dict:
    """A shorter input on which they still differ, by leaving out stretches."""
    limits = {"limits": found["limits"]} if "limits" in found else {}
    data = base64.b64decode(found["input"])
    length = max(1, len(data) // 2)
    for _ in range(ROUNDS):
        starts = range(0, len(data), max(1, length, -(-len(data) // CANDIDATES)))
        candidates = [entry(str(place), data[:start] + data[start + length :], limits) for place, start in enumerate(starts)]
        answers = ask(taking_part, candidates) if candidates else {}
        still = next((one for one in candidates if not differences.agree(one["id"], answers)), None)
        if still is not None:
            data = base64.b64decode(still["input"])
        elif length == 1:
            break
        length = max(1, min(length if still is not None else length // 2, len(data)))
    return entry(found["id"] + ", made smaller", data, {"class": found["class"], **limits})


def report(found: dict, subject: Subject, taking_part: list[languages.Language], answers: dict[str, languages.Answers]) -> None:
    print(differences.described(found, answers), file=sys.stderr)
    if subject is TEXTS:
        small = smaller(found, taking_part)
        print(differences.described(small, ask(taking_part, [small])), file=sys.stderr)


def fuzz(seed: str, subject: Subject, taking_part: list[languages.Language], *, batches: int | None, seconds: float) -> int:
    inputs = [base64.b64decode(vector["input"]) for vector in languages.lines_of(subject.files)]
    inputs = [data for data in inputs if len(data) <= LONGEST]
    counts, done, deadline = Counter(), 0, time.monotonic() + seconds
    while done < batches if batches is not None else time.monotonic() < deadline:
        made = subject.batch(random.Random(f"{seed}/{done}"), inputs, subject.size)
        entries = [entry(f"{seed}/{done}/{place}", one.pop("data"), one) for place, one in enumerate(made)]
        answers = ask(taking_part, entries, subject)
        counts.update(kind_of(answers[taking_part[0].name].get(one["id"])) for one in entries)
        different = [one for one in entries if not differences.agree(one["id"], answers)]
        done += 1
        if different:
            for found in different[:3]:
                report(found, subject, taking_part, answers)
            again = f"fuzz.py {'--receipts ' * (subject is EXPORTS)}--seed {seed} --batches {done}"
            print(f"seed {seed}, batch {done - 1}: they differ on {len(different)} of {subject.size}; again: {again}", file=sys.stderr)
            return 1
    names = ", ".join(one.name for one in taking_part)
    print(f"seed {seed}: {done * subject.size} inputs in {done} batches, {names} agree: " + ", ".join(f"{counts[kind]} {kind}" for kind in sorted(counts)))
    return 0


def kind_of(answer: object) -> str:
    """In a word: the reason of a failure, a verdict, or that there was a hash."""
    if isinstance(answer, dict):
        report = answer["report"]
        return "bad input" if report is None else report["failure"]["code"] if report["failure"] else report["verdict"]
    return "accepted" if len(str(answer)) == HASH_DIGITS else str(answer)


def main() -> int:
    parser = argparse.ArgumentParser(description="Differential fuzzing of the canonical form between the languages")
    parser.add_argument("--receipts", action="store_true", help="exports of receipts instead of texts")
    bound = parser.add_mutually_exclusive_group()
    bound.add_argument("--seconds", type=float, default=60.0)
    bound.add_argument("--batches", type=int)
    parser.add_argument("--seed", default=str(random.SystemRandom().randrange(10**9)))
    options = parser.parse_args()
    try:
        return fuzz(options.seed, EXPORTS if options.receipts else TEXTS, languages.all_of_them(), batches=options.batches, seconds=options.seconds)
    except languages.CannotAnswer as error:
        print(f"fuzz: {error}; seed {options.seed}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
