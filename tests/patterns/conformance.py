"""Row patterns by the cases of Trino's own test classes: the engine (`aegis sql`) must answer the same rows, fail where they fail, and refuse what
docs/specs/row-patterns.md leaves out.

ALL ROWS PER MATCH is not run by the engine. Such a case is asked with ONE ROW PER MATCH, and lists of the match's rows: from these each of its rows
is told, as far as its measures are told by the rows up to it (the match's number, labels, columns), and at its last row whatever they are. What is
not told fits any value."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from java import Reader
from sql import Left, Query, closing, rows_of, upper, written

ANY = object()
"""What is not told."""
OF_THE_WHOLE = object()
"""What is told of a whole match, and so of its last row."""

REFUSED = {"cannot stand within another navigation or an aggregate": "MATCH_NUMBER() in an aggregate"}
"""By what the engine says of it: what it has not, and no look at the query's words tells."""

OF_THE_ENGINE = {
    "testDecimalAvg": "DataFusion turns a float to a decimal inexactly where it compares them (CAST(1 AS DECIMAL(34, 24)) = 1e0 is false)",
    "testMinN": "min(x, n)",
    "testMaxN": "max(x, n)",
}
"""Cases that turn on something other than row patterns, in which the engine is another than Trino."""


class Refused(Exception):
    """What the engine refuses by name."""


def ask(program, folder, query):
    """The rows of a query, each a dict; None and what is said where it is refused, or fails."""
    asked = subprocess.run([program, "sql", "-", "--data", folder, "--tenant", "t", "--json"], input=query, capture_output=True, text=True, check=False)
    if asked.returncode:
        return None, asked.stderr.strip()
    return [json.loads(line) for line in asked.stdout.splitlines()], ""


def told_by(measure, match, place):
    """What a measure is at one row of a match of which the whole is known."""
    words = [upper(token) for token in measure]
    if words[0] == "FINAL" and len(words) > 3 and closing(measure, 2) == len(measure) - 1:
        return OF_THE_WHOLE
    is_last = place == match["told_rows"] - 1
    running = words[1:] if words[0] == "RUNNING" else words
    column = f"told_of_{running[-2 if running[-1] == ')' else -1].lower()}"
    if words == ["MATCH_NUMBER", "(", ")"]:
        return match["told_number"]
    if running in (["CLASSIFIER", "(", ")"], ["LAST", "(", "CLASSIFIER", "(", ")", ")"]):
        return match["told_labels"][place]
    if column in match and (len(running) == 1 or (len(running) == 4 and running[0] == "LAST")):
        return match[column][place]
    if column in match and len(running) == 4 and running[0] == "FIRST":
        return match[column][0]
    return OF_THE_WHOLE if is_last else ANY


def rows_of_match(query, match, items):
    """The rows that a match is in the answer."""
    if not query.all_rows:
        return [[match[name] for name in items]]
    rows = []
    for place in range(match["told_rows"]):
        row = []
        for name in items:
            if name in query.measures:
                told = told_by(query.measures[name], match, place)
                row.append(match[name] if told is OF_THE_WHOLE else told)
            else:
                row.append(match[name] if name in query.partition else match[f"told_of_{name}"][place])
        rows.append(row)
    if not rows and "OMIT" not in query.options:
        # An empty match is a row: that at which it is, which it does not have.
        rows.append([match[name] if name in query.measures or name in query.partition else ANY for name in items])
    return rows


def unmatched(query, matches, inputs, items):
    """The rows of no match, of WITH UNMATCHED ROWS."""
    if len(query.order) != 1 or query.partition or any(not match["told_rows"] for match in matches):
        raise Left("rows of no match, which are not told apart here")
    (key,) = query.order
    taken = {value for match in matches for value in match[f"told_of_{key}"]}
    return [[None if name in query.measures else row[name] for name in items] for row in inputs if row[key] not in taken]


def items_of(query):
    """Names of the columns of the answer."""
    items = []
    for part, _ in query.items:
        words = [upper(token) for token in part]
        if words == ["*"]:
            rest = [name for name in query.columns if name not in query.partition and name not in query.order]
            items += [*query.partition, *(query.order if query.all_rows else []), *query.measures, *(rest if query.all_rows else [])]
            continue
        if words[0] == "CAST":
            part = part[2:-3]
        name = part[-1][1].lower()
        if len(part) not in (1, 3) or (name not in query.measures and name not in query.partition and name not in query.columns):
            raise Left(f"the item {written(part)}")
        items.append(name)
    return items


def same(wanted, told):
    if told is ANY:
        return True
    if isinstance(wanted, list) and isinstance(told, list):
        return len(wanted) == len(told) and all(map(same, wanted, told))
    if isinstance(wanted, (int, float)) and isinstance(told, (int, float)) and not isinstance(wanted, bool) and not isinstance(told, bool):
        return abs(wanted - told) < 1e-9
    return wanted == told and type(wanted) is type(told)


def fit(wanted, told):
    """True if the rows can be put together, each with one of the others."""
    given = {}

    def place(row, tried):
        for other, values in enumerate(told):
            if other not in tried and len(values) == len(wanted[row]) and all(map(same, wanted[row], values)):
                tried.add(other)
                if other not in given or place(given[other], tried):
                    given[other] = row
                    return True
        return False

    return len(wanted) == len(told) and all(place(row, set()) for row in range(len(wanted)))


def differs(program, folder, case, query):
    """What is wrong with the engine's answer to a case; None: nothing. Raises where the case cannot be compared."""
    matches, said = ask(program, folder, query.engine_sql())
    if matches is None and "Invalid function" in said:
        name = said.split("'")[1]
        raise Left(f"the function {name}, which the engine has not")
    if case.fails:
        return None if matches is None else f"it must fail, and answers {matches}"
    if matches is None:
        for words, what in REFUSED.items():
            if words in said:
                raise Refused(what)
        return said
    items = items_of(query)
    rows = [row for match in matches for row in rows_of_match(query, match, items)]
    if "WITH UNMATCHED" in query.options:
        rows += unmatched(query, matches, ask(program, folder, query.input_sql())[0], items)
    wanted = rows_of(case.rows) if case.rows else []
    shown = [["?" if value is ANY else value for value in row] for row in rows]
    return None if fit(wanted, rows) else f"it must answer {wanted}, and answers {shown}"


def check(program, folder, case):
    """What became of a case: `same`, `differs`, `refused`, `left`, and what there is to say of it."""
    try:
        query = Query(case.query)
        left_out = query.left_out()
        if left_out:
            answer, said = ask(program, folder, query.engine_sql())
            return ("refused", left_out) if answer is None else ("differs", f"{left_out} is not run, and the engine answers {answer}")
        wrong = differs(program, folder, case, query)
    except Refused as what:
        return "refused", str(what)
    except Left as why:
        return "left", str(why)
    if wrong and case.test in OF_THE_ENGINE:
        return "left", OF_THE_ENGINE[case.test]
    return ("differs", wrong) if wrong else ("same", "")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("classes", type=Path, nargs="+", help="test classes of Trino's")
    parser.add_argument("--least", type=int, default=0, help="fewer cases that are the same are a failure: then something else is read than there is")
    options = parser.parse_args()
    counts, why = Counter(), Counter()
    with tempfile.TemporaryDirectory() as folder:
        # The lake of a tenant that has no rows: what the cases ask stands in them.
        Path(folder, "lake", "tenant=t").mkdir(parents=True)
        for file in options.classes:
            for case in Reader(file.read_text(encoding="utf-8")).cases():
                verdict, said = check(os.environ["AEGIS_BIN"], folder, case)
                counts[verdict] += 1
                if verdict == "differs":
                    print(f"FAIL    {file.stem}.{case.test}: {said}\n        {' '.join(case.query.split())}")
                elif said:
                    why[f"{verdict}: {said}"] += 1
    for said, count in sorted(why.items()):
        print(f"        {count} {said}")
    print(f"row patterns: {counts['same']} cases are the same, {counts['differs']} differ, {counts['refused']} have what is refused, {counts['left']} are left")
    if counts["same"] < options.least:
        print(f"row patterns: at least {options.least} were to be compared")
    sys.exit(1 if counts["differs"] or counts["same"] < options.least else 0)


if __name__ == "__main__":
    main()
