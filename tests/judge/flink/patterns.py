"""Random row patterns that Flink and the engine define alike, and their queries in the words of either. What keeps them alike, and why, is the table
in README.md; the names of its rows stand here where they are kept."""

import copy
from itertools import pairwise

TOOLS = ["x", "y", "z"]
DECISIONS = ["allow", "deny"]
MOST_RISK = 6
WITHIN_S = [1, 2, 3, 5]
END = "z"
"""The variable that takes the row behind an end, in Flink alone."""

OF_A_ROW = [
    "{v}.tool <> 'z'", "{v}.tool <> 'x'", "{v}.tool IN ('x', 'y')", "{v}.tool IN ('y', 'z')", "{v}.tool IS NOT NULL", "{v}.decision = 'deny'",
    "{v}.decision = 'allow'", "{v}.decision IS NULL", "{v}.decision <> 'deny'", "{v}.risk_score > {k}", "{v}.risk_score <= {k}", "{v}.risk_score <> {k}",
    "{v}.risk_score BETWEEN 1 AND {k}", "{v}.mutates_state", "NOT {v}.mutates_state", "{v}.mutates_state IS NOT TRUE", "{v}.mutates_state IS NOT FALSE",
    "({v}.tool = 'y' OR {v}.risk_score < {k})", "({v}.decision = 'deny' AND {v}.risk_score >= 2)",
]  # fmt: skip
"""Conditions that read the row alone."""

OF_THE_MAPPING = [
    "(LAST({v}.risk_score, 1) IS NULL OR {v}.risk_score >= LAST({v}.risk_score, 1))", "COALESCE(SUM({v}.risk_score), 0) < {sum}",
    "COUNT({v}.event_id) <= {n}", "MAX({v}.risk_score) - MIN({v}.risk_score) < {k}", "{v}.risk_score <= FIRST({v}.risk_score) + 1",
    "SUM(risk_score) < {sum} * 2", "COUNT(event_id) <= {n} + 3",
]  # fmt: skip
OF_ANOTHER = [
    "{v}.tool = {u}.tool", "{v}.tool <> FIRST({u}.tool)", "{v}.risk_score > {u}.risk_score", "{v}.risk_score >= MIN({u}.risk_score)",
    "COUNT({u}.event_id) >= {n}", "SUM({u}.risk_score) > {k}", "{v}.decision = LAST({u}.decision)", "FIRST({u}.mutates_state) IS NOT TRUE",
    "{v}.risk_score < AVG(CAST({u}.risk_score AS DOUBLE)) + 1",
]  # fmt: skip
OF_TIME = ["{v}.at_ms <= FIRST({u}.at_ms) + {ms}", "{v}.at_ms > LAST({u}.at_ms)"]
"""Conditions that read the mapping: of a variable's own rows, of another's before it, and times, which are a number in `aegis sql` alone."""

MEASURES = [
    "LAST({u}.tool)", "FIRST({u}.decision)", "{u}.risk_score", "SUM({u}.risk_score)", "MIN({u}.risk_score)", "MAX({u}.risk_score)", "COUNT({u}.risk_score)",
    "LAST({u}.tool, 1)", "FIRST({u}.risk_score, 2)", "SUM({u}.risk_score * 2 + 1)", "COALESCE({u}.risk_score, -1) - COALESCE({w}.risk_score, 0)",
    "FIRST({u}.mutates_state)",
]  # fmt: skip
OF_ALL = ["SUM(risk_score)", "COUNT(event_id)", "LAST(tool)", "FIRST(decision)", "LAST(risk_score, 1)", "MAX(risk_score)"]
AS_NUMBERS = ["AVG(CAST({u}.risk_score AS DOUBLE))", "LAST({u}.at_ms) - FIRST({w}.at_ms)", "MIN({u}.at_ms)"]
"""Measures: of variables, of all rows, and of what alerts do not tell as a text that is the same in both."""

WHERE = {
    "tool IS NOT NULL": lambda row: row["tool"] is not None,
    "tool <> 'x'": lambda row: row["tool"] not in ("x", None),
    "decision = 'deny'": lambda row: row["decision"] == "deny",
    "risk_score < 5": lambda row: row["risk_score"] is not None and row["risk_score"] < 5,
    "mutates_state IS NOT TRUE": lambda row: row["mutates_state"] is not True,
}
"""Filters below a pattern, and which rows pass them."""

FIXED = ["", "", "", "{2}"]
GREEDY = ["*", "+", "+", "{1,2}", "{1,}", "{2,3}", "{2,}", "{0,2}", "{1,3}", "{,2}"]
RELUCTANT = ["+?", "*?", "{1,2}?", "{1,3}?", "{1,}?", "{2,4}?", "{0,2}?"]


class Variable:
    def __init__(self, name, quantifier, of_a_row, of_the_mapping=()):
        self.name, self.quantifier, self.of_a_row, self.of_the_mapping = name, quantifier, of_a_row, list(of_the_mapping)
        self.unlike = []
        """Other variables, whose rows this one never takes."""

    @property
    def bounds(self):
        """Least and most rows; None: any number."""
        bare = self.quantifier.removesuffix("?") if len(self.quantifier) > 1 else self.quantifier
        if bare.startswith("{"):
            low, _, high = bare[1:-1].partition(",")
            return int(low or 0), (int(high) if high else None) if "," in bare else int(low)
        return {"": (1, 1), "?": (0, 1), "*": (0, None), "+": (1, None)}[bare]

    @property
    def is_flexible(self):
        low, high = self.bounds
        return low != high

    @property
    def is_reluctant(self):
        return len(self.quantifier) > 1 and self.quantifier.endswith("?")

    def parts(self):
        """What its condition asks for, each of it; nothing: it takes any row."""
        own = [self.of_a_row.replace("{v}", self.name)] if self.of_a_row else []
        return own + [f"({other.of_a_row.replace('{v}', self.name)}) IS NOT TRUE" for other in self.unlike] + self.of_the_mapping


class Pattern:
    """One MATCH_RECOGNIZE, over the rows that pass `where`, of which those matches are told that pass `having`. `measures` are beside the ends and the
    number of each variable's rows (or, `is_loose`, of all rows)."""

    def __init__(self, variables, skip, within_s, measures, is_loose):
        self.variables, self.skip, self.within_s, self.measures, self.is_loose = variables, skip, within_s, measures, is_loose
        self.where, self.having, self.descends = None, None, False

    @property
    def is_open(self):
        """True where a greedy variable is the last one: Flink takes none as the last, so there the row behind it is asked for."""
        return self.variables[-1].is_flexible and not self.variables[-1].is_reluctant

    @property
    def reads_the_mapping(self):
        return any(variable.of_the_mapping for variable in self.variables)

    def columns(self):
        """Measures, by name."""
        prefixes = [""] if self.is_loose else [f"{variable.name}." for variable in self.variables]
        ends = [(f"{what.lower()}_{number}", f"{what}({of}event_id)") for number, of in enumerate(prefixes) for what in ("FIRST", "LAST", "COUNT")]
        return dict(ends + [(f"m{number}", measure) for number, measure in enumerate(self.measures)])

    def written(self, is_flink, measures, partition, order):
        """The MATCH_RECOGNIZE; its measures are written `expression AS name`."""
        skip, names, define = self.skip, [variable.name + variable.quantifier for variable in self.variables], []
        if is_flink:
            # "No least number of rows".
            names = [name.replace("{,", "{0,") for name in names]
        for variable in self.variables:
            parts = variable.parts()
            if is_flink:
                # The row that ends a partition is no variable's: "end of a partition".
                parts.insert(0, f"NOT {variable.name}.is_end")
            elif self.within_s:
                # What WITHIN says, "WITHIN".
                parts.append(f"{variable.name}.at_ms < FIRST(at_ms) + {self.within_s * 1000}")
            if parts:
                define.append(f"{variable.name} AS {' AND '.join(parts)}")
        if is_flink and self.is_open:
            # "A greedy last variable".
            names.append(END)
            skip = f"TO LAST {END}" if skip == "PAST LAST ROW" else skip
        within = f" WITHIN INTERVAL '{self.within_s}' SECOND" if is_flink and self.within_s else ""
        return f"""MATCH_RECOGNIZE (
  PARTITION BY {partition} ORDER BY {order}
  MEASURES {', '.join(measures)}
  ONE ROW PER MATCH AFTER MATCH SKIP {skip}
  PATTERN ({' '.join(names)}){within}
  DEFINE {', '.join(define)}
)"""

    def order(self, time):
        return f"{time}, n{' DESC' * self.descends}"

    @property
    def filter(self):
        """Of matches."""
        return f" WHERE {self.having}" if self.having else ""

    def flink_sql(self, table):
        measures = [f"{said} AS {name}" for name, said in self.columns().items()]
        source = f"(SELECT * FROM {table} WHERE is_end OR ({self.where}))" if self.where else table
        return f"SELECT * FROM {source} {self.written(True, measures, 'p, q', self.order('ts'))}{self.filter}"

    def engine_sql(self):
        """Over the rows of `input`, which a WITH before it has."""
        measures = [f"{said} AS {name}" for name, said in self.columns().items()]
        seen, source = (f", seen AS (SELECT * FROM input WHERE {self.where})\n", "seen") if self.where else ("", "input")
        return f"{seen}SELECT * FROM {source} {self.written(False, measures, 'p, q', self.order('at_ms'))} AS m{self.filter}"

    def rule_sql(self, by):
        """As a rule over events, with a partition for each value of these columns. Measures are told as texts: an alert has no field that is null."""
        columns = self.columns()
        measures = ["array_agg(event_id) AS event_ids"] + [f"{said} AS {name}" for name, said in columns.items()]
        told = ", ".join(f"coalesce(CAST({name} AS VARCHAR), 'null') AS told_{name}" for name in columns)
        seen, source = (f"WITH seen AS (SELECT * FROM events WHERE {self.where})\n", "seen") if self.where else ("", "events")
        return f"{seen}SELECT agent_id, event_ids, {told}\nFROM {source} {self.written(False, measures, ', '.join(by), 'ts')}{self.filter}"


def random_pattern(rng, for_rule):
    pattern = loose(rng, for_rule) if rng.random() < 0.25 else strict(rng, for_rule)
    if rng.random() < 0.25:
        pattern.where = rng.choice(sorted(WHERE))
    if rng.random() < 0.2:
        pattern.having = rng.choice(["count_0 >= 2", "count_0 <> 1", "count_0 <= 2"])
    pattern.descends = not for_rule and rng.random() < 0.15
    return pattern


def condition(rng, column=""):
    """Of a column, or of any."""
    return rng.choice([said for said in OF_A_ROW if column in said]).replace("{k}", str(rng.randrange(1, MOST_RISK)))


def loose(rng, for_rule):
    """Variables that take each other's rows: which of them has which row Flink leaves open, but not where a match ends ("reluctant, and more than one way")."""
    count = rng.choice([2, 3, 3, 4])
    variables = []
    for name in "abcd"[:count]:
        quantifier = rng.choice(["", "+?", "*?"]) if name != "abcd"[count - 1] else ""
        variables.append(Variable(name, quantifier, condition(rng) if rng.random() < 0.8 else None))
    if not any(variable.of_a_row for variable in variables):
        variables[-1].of_a_row = condition(rng)
    return Pattern(variables, rng.choice(["PAST LAST ROW", "TO NEXT ROW"]), within(rng, for_rule), [], True)


def within(rng, for_rule):
    return rng.choice(WITHIN_S) if not for_rule and rng.random() < 0.3 else None


def strict(rng, for_rule):
    """Of which each row of a match has one variable only that it can have, or one way at least that is found first in both."""
    count = rng.choice([1, 2, 2, 2, 3, 3, 3, 4])
    names = "abcd"[:count]
    quantifiers = [rng.choice(FIXED + GREEDY + RELUCTANT + ["?"]) for _ in names]
    # Mostly of a column each: what is not to have another's rows would have none, often.
    columns = rng.sample(["tool", "decision", "risk_score", "mutates_state"], count) if rng.random() < 0.7 else [""] * count
    variables = [Variable(*each, condition(rng, column)) for *each, column in zip(names, quantifiers, columns, strict=True)]
    end_well(rng, variables)
    is_open = variables[-1].is_flexible and not variables[-1].is_reluctant
    flexible = [variable for variable in variables if variable.is_flexible]
    # One reluctant variable may have rows that the ones behind it have too: the last flexible one, where what follows it is fixed.
    may_share = flexible[-1] if flexible and flexible[-1].is_reluctant and not is_open else None
    for place, variable in enumerate(variables):
        if variable.is_flexible and variable is not may_share:
            # "A greedy variable never gives back".
            for following in variables[place + 1 :]:
                following.unlike.append(variable)
                if following.bounds[0]:
                    break
    for variable in variables:
        is_needed = any(variable in other.unlike for other in variables)
        if not is_needed and rng.random() < 0.15:
            variable.of_a_row = None
    for place, variable in enumerate(variables):
        if rng.random() < 0.25:
            variable.of_the_mapping.append(of_the_mapping(rng, variable, variables[:place], for_rule))
    if not any(variable.parts() for variable in variables):
        variables[-1].of_a_row = condition(rng)
    within_s = None if is_open else within(rng, for_rule)
    return Pattern(variables, skip_of(rng, variables), within_s, measures(rng, variables, is_open, for_rule), False)


def end_well(rng, variables):
    """No match is empty, and how it ends is one of the ways that are alike."""
    last = variables[-1]
    if last.quantifier == "?":
        # "An optional last variable".
        last.quantifier = rng.choice(["", "*"])
    if last.is_flexible and not last.is_reluctant and last.bounds[1]:
        # "A greedy last variable of at most so many rows".
        last.quantifier = rng.choice(["*", "+", "{2,}"])
    if last.is_reluctant and not last.bounds[0]:
        # "A reluctant last variable that may be empty".
        if len(variables) == 1 or variables[-2].is_flexible:
            last.quantifier = rng.choice(["+?", "{1,2}?"])
    for place, variable in enumerate(variables):
        if variable.quantifier == "?" and not any(following.bounds[0] for following in variables[place + 1 :]):
            # "An optional last variable": what follows it may be empty.
            variable.quantifier = "{0,2}"
    if not any(variable.bounds[0] for variable in variables):
        variables[0].quantifier = rng.choice(["", "+", "{2}"])
    for before, variable in pairwise(variables):
        is_greedy = before.is_flexible and not before.is_reluctant and before.quantifier != "?"
        if is_greedy and not variable.bounds[0]:
            # "An optional variable behind a greedy one".
            variable.quantifier = rng.choice(["+?", "{1,2}?"] if variable.is_reluctant else ["+", ""])


def of_the_mapping(rng, variable, before, for_rule):
    choices = OF_THE_MAPPING + (OF_ANOTHER + ([] if for_rule else OF_TIME)) * bool(before)
    said = rng.choice(choices).replace("{v}", variable.name).replace("{u}", rng.choice(before).name if before else "")
    numbers = {"{k}": rng.randrange(1, MOST_RISK), "{n}": rng.choice([1, 2, 3]), "{sum}": rng.choice([3, 6, 10]), "{ms}": rng.choice([0, 500, 1000, 2000])}
    for mark, number in numbers.items():
        said = said.replace(mark, str(number))
    return said


def skip_of(rng, variables):
    """To a variable only that has rows in each match, and never the first of it: "SKIP TO" fails else, in both."""
    targets = [variable.name for place, variable in enumerate(variables) if variable.bounds[0] and any(v.bounds[0] for v in variables[:place])]
    modes = ["PAST LAST ROW", "PAST LAST ROW", "TO NEXT ROW"]
    if targets:
        modes += [f"TO FIRST {rng.choice(targets)}", f"TO LAST {rng.choice(targets)}"]
    return rng.choice(modes)


def measures(rng, variables, is_open, for_rule):
    """Of all rows only where Flink's match has no more of them than the engine's."""
    choices = MEASURES + ([] if is_open else OF_ALL) + ([] if for_rule else AS_NUMBERS)
    chosen = rng.sample(choices, rng.choice([1, 2, 3]))
    return [said.replace("{u}", rng.choice(variables).name).replace("{w}", rng.choice(variables).name) for said in chosen]


MUTATIONS = ["skip", "bound", "reluctance", "condition", "measure", "within"]
"""What is changed of a pattern on one side alone, to see that the judge finds it."""


def mutated(rng, pattern, mutation):
    """The pattern with one thing changed; None: it has no such thing."""
    changed = copy.deepcopy(pattern)
    variables = changed.variables
    if mutation == "skip":
        changed.skip = "TO NEXT ROW" if pattern.skip == "PAST LAST ROW" else "PAST LAST ROW"
        return changed
    if mutation == "within":
        changed.within_s = (pattern.within_s or 0) + 1
        return changed if pattern.within_s else None
    if mutation == "measure":
        places = [place for place, said in enumerate(changed.measures) if said.startswith(("FIRST(", "MIN(", "SUM("))]
        for place in places:
            said = changed.measures[place]
            changed.measures[place] = said.replace("FIRST(", "LAST(", 1).replace("MIN(", "MAX(", 1).replace("SUM(", "COUNT(", 1)
        return changed if places else None
    if mutation == "condition":
        variable = rng.choice(variables)
        variable.of_the_mapping = [*variable.of_the_mapping, f"({variable.name}.tool IS DISTINCT FROM 'x')"]
        return changed
    if mutation == "bound":
        variable = rng.choice(variables)
        low, high = variable.bounds
        variable.quantifier = f"{{{low + 1},{high + 1 if high else ''}}}" + "?" * variable.is_reluctant
        return changed
    flexible = [variable for variable in variables if variable.is_flexible and variable.quantifier != "?"]
    if not flexible:
        return None
    variable = flexible[-1]
    variable.quantifier = variable.quantifier.removesuffix("?") if variable.is_reluctant else variable.quantifier + "?"
    return changed
