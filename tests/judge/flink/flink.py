"""Apache Flink as a judge: many queries, each over rows of its own, in one job of one Java process."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[3] / "bench" / "flink"))

import library  # noqa: E402

MEMORY = ["-Xms256m", "-Xmx2g"]
NULL = "\\N"
COLUMNS = ["p", "q", "n", "at_ms", "is_end", "event_id", "tool", "decision", "risk_score", "mutates_state"]
"""As Judge.java has them."""
QUERIES_OF_A_JOB = 8


class Refused(Exception):
    """What Flink says of a query that it does not run."""


class Flink:
    def __init__(self, folder):
        self.folder, self.jobs = folder, 0
        classes = folder / "classes"
        classes.mkdir()
        library.compiled(Path(__file__).resolve().parent / "Judge.java", classes)
        self.program = library.Program(classes, "Judge", [], MEMORY)

    def close(self):
        self.program.process.stdin.close()
        self.program.process.wait()

    def job(self, cases):
        """What came of cases, each a function from the name of its table to a query, with its rows."""
        folder = self.folder / f"job{self.jobs}"
        folder.mkdir()
        self.jobs += 1
        for number, (query, rows) in enumerate(cases):
            (folder / f"{number}.sql").write_text(query(f"t{number}"), encoding="utf-8")
            (folder / f"{number}.rows").write_text("".join(line(row) for row in [*rows, *ends(rows)]), encoding="utf-8")
        answer = self.program.ask(str(folder))
        return answer if answer else sys.exit("judge: Flink's process ended")

    def ask(self, query, rows):
        """The rows of one query, each a list."""
        answer = self.job([(query, rows)])
        if "answers" not in answer:
            raise Refused(f"{answer['says']}\n{query('rows')}")
        return answer["answers"][0]

    def ask_all(self, cases):
        """The rows of each query."""
        answers = []
        for first in range(0, len(cases), QUERIES_OF_A_JOB):
            part = cases[first : first + QUERIES_OF_A_JOB]
            answer = self.job(part)
            # Which of them it was does not matter here: it is asked alone, and says so.
            answers += answer["answers"] if "answers" in answer else [self.ask(*case) for case in part]
        return answers


def ends(rows):
    """A row behind each partition, which is no variable's: no stream ends in Flink while it runs, and what is open there is never decided."""
    newest = {}
    for row in rows:
        partition = (row["p"], row["q"])
        newest[partition] = max(newest.get(partition, row["at_ms"]), row["at_ms"])
    return [{"p": p, "q": q, "n": 1_000_000, "at_ms": at_ms + 1, "is_end": True, "event_id": None} for (p, q), at_ms in newest.items()]


def line(row):
    row = {"is_end": False} | row
    return "\t".join(text(row.get(name)) for name in COLUMNS) + "\n"


def text(value):
    return NULL if value is None else str(value).lower() if isinstance(value, bool) else str(value)
