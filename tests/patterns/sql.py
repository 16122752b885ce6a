"""A query with one MATCH_RECOGNIZE in Trino's words, in those of the engine: its table has a name, its variables keep their case, and ALL ROWS PER
MATCH is ONE ROW PER MATCH with lists of what its rows were. And the rows of a VALUES."""

import re

TOKEN = re.compile(r"(?P<space>\s+|--[^\n]*|/\*.*?\*/)|(?P<text>'(?:[^']|'')*')|(?P<quoted>\"[^\"]*\")|(?P<word>[A-Za-z_]\w*)|(?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)|(?P<sign>\{-|-\}|\|\||<=|>=|<>|!=|.)", re.S)
CLAUSES = ["PARTITION BY", "ORDER BY", "MEASURES", "ALL ROWS PER MATCH", "ONE ROW PER MATCH", "AFTER MATCH", "INITIAL", "SEEK", "PATTERN", "SUBSET", "DEFINE"]


class Left(Exception):
    """Why a query is not one that the engine is to run: what it has of row patterns that docs/specs/row-patterns.md leaves out."""


def tokens_of(text):
    return [(token.lastgroup, token.group()) for token in TOKEN.finditer(text) if token.lastgroup != "space"]


def written(tokens):
    return " ".join(word for _, word in tokens)


def upper(token):
    return token[1].upper() if token[0] == "word" else token[1]


def split(tokens, sign=","):
    """Parts of tokens, at a sign outside of parentheses."""
    parts, depth = [[]], 0
    for token in tokens:
        depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(token[1], 0)
        if token[1] == sign and depth == 0:
            parts.append([])
        else:
            parts[-1].append(token)
    return [part for part in parts if part]


def closing(tokens, at):
    """The place of the parenthesis that closes the one at `at`."""
    depth = 0
    for place in range(at, len(tokens)):
        depth += {"(": 1, ")": -1}.get(tokens[place][1], 0)
        if depth == 0:
            return place
    raise ValueError("a parenthesis is not closed")


def named(part):
    """An expression and its name: `x AS name`, `x name`, `a.name`."""
    name = part[-1][1]
    name = name.strip('"') if name.startswith('"') else name.lower()
    if len(part) > 2 and upper(part[-2]) == "AS":
        return part[:-2], name
    return part, name


class Query:
    """What a query asks for: its input, its clauses, and its items."""

    def __init__(self, text):
        tokens = tokens_of(text)
        words = [upper(token) for token in tokens]
        if words.count("MATCH_RECOGNIZE") != 1:
            raise Left("not one MATCH_RECOGNIZE")
        at, depths = words.index("MATCH_RECOGNIZE"), depths_of(tokens)
        select = next(place for place, word in enumerate(words) if word == "SELECT" and depths[place] == 0)
        begin = next(place for place in range(select, at) if words[place] == "FROM" and depths[place] == 0)
        self.items = [named(part) for part in split(tokens[select + 1 : begin])]
        self.clauses = clauses_of(tokens[at + 2 : closing(tokens, at + 1)])
        self.before, self.input, self.columns = input_of(tokens[:select], tokens[begin + 1 : at])
        self.partition = [named(part)[1] for part in split(self.clauses.get("PARTITION BY", []))]
        self.order = [part[0][1].lower() for part in split(self.clauses.get("ORDER BY", []))]
        self.measures = dict((name, part) for part, name in map(named, split(self.clauses.get("MEASURES", []))))
        self.all_rows = "ALL ROWS PER MATCH" in self.clauses
        self.options = written(self.clauses.get("ALL ROWS PER MATCH", [])).upper()

    def left_out(self):
        """What it has that the engine must refuse; None: it runs."""
        pattern = written(self.clauses["PATTERN"]).upper()
        if "SUBSET" in self.clauses:
            return "SUBSET"
        if "PERMUTE" in pattern:
            return "PERMUTE"
        if "{-" in pattern:
            return "exclusion"
        if any(upper(token) == "SELECT" for clause in ("MEASURES", "DEFINE") for token in self.clauses.get(clause, [])):
            return "a subquery in a clause"
        return None

    def engine_sql(self):
        """What the engine is asked. `told_number`, `told_rows`, `told_labels` and a list for each column say what the rows of each match were."""
        variables = {word for kind, word in self.clauses["PATTERN"] if kind == "word" and word.upper() != "PERMUTE"}
        lists = [f'array_agg({column}) AS "told_of_{column}"' for column in self.columns]
        own = [f'{quoting(part, variables, self.columns)} AS "{name}"' for name, part in self.measures.items()]
        facts = ['MATCH_NUMBER() AS "told_number"', 'count(*) AS "told_rows"', 'array_agg(CLASSIFIER()) AS "told_labels"', *lists]
        said = []
        for clause, tokens in self.clauses.items():
            if clause != "MEASURES" and not clause.endswith("PER MATCH"):
                said.append(f"{clause} {quoting(tokens, variables, self.columns, in_pattern=clause == 'PATTERN')}")
        place = next(n for n, clause in enumerate(said) if clause.startswith(("AFTER", "PATTERN")))
        said.insert(place, "MEASURES " + ", ".join([*own, *facts]) + " ONE ROW PER MATCH")
        return f"{self.before} SELECT * FROM {self.input} MATCH_RECOGNIZE ({' '.join(said)}) AS m"

    def input_sql(self):
        return f"{self.before} SELECT * FROM {self.input}"


def depths_of(tokens):
    depths, depth = [], 0
    for token in tokens:
        depths.append(depth)
        depth += {"(": 1, ")": -1}.get(token[1], 0)
    return depths


def clauses_of(body):
    """The clauses of a MATCH_RECOGNIZE, by name."""
    found, name, depths = {}, None, depths_of(body)
    words, at = [upper(token) for token in body], 0
    while at < len(body):
        begins = [clause for clause in CLAUSES if depths[at] == 0 and words[at : at + len(clause.split())] == clause.split()]
        if begins:
            name = begins[0]
            found[name] = []
            at += len(name.split())
        else:
            found[name].append(body[at])
            at += 1
    return found


def input_of(before, source):
    """The WITH that the query has then, the name of its table, and the table's columns, where they are told."""
    if source[0][1] != "(":
        return written(before), written(source), []
    end = closing(source, 0)
    inner, alias = source[1:end], [token for token in source[end + 1 :] if upper(token) != "AS"]
    if upper(inner[0]) == "VALUES":
        rows = [part if part[0][1] == "(" else [("sign", "("), *part, ("sign", ")")] for part in split(inner[1:])]
        inner = [inner[0], *[token for row in rows for token in [("sign", ","), *row]][1:]]
    columns = [token[1].lower() for token in alias[2:-1] if token[0] == "word"]
    named_columns = f"({', '.join(columns)})" if columns else ""
    return f"WITH input{named_columns} AS ({written(inner)})", "input", columns


def quoting(tokens, variables, columns, in_pattern=False):
    """The tokens, with variables quoted in upper case, as Trino takes those that are not: the engine folds them to lower case."""
    said = []
    for place, token in enumerate(tokens):
        following = tokens[place + 1][1] if place + 1 < len(tokens) else ""
        before = tokens[place - 1][1] if place else ""
        is_variable = token[0] == "word" and token[1].upper() in {variable.upper() for variable in variables} and before != "."
        is_column = token[1].lower() in columns and following != "." and upper(tokens[place + 1] if following else ("", "")) != "AS"
        if is_variable and (in_pattern or (following != "(" and not is_column)):
            said.append(f'"{token[1].upper()}"')
        else:
            said.append(token[1])
    text = " ".join(said)
    # An anchor is repeated in parentheses alone.
    text = re.sub(r"([\^$])\s*(?=[*+?{])", r"( \1 ) ", text) if in_pattern else text
    # A literal with its type before it.
    return re.sub(r"\b(VARCHAR|BIGINT|INTEGER)\s+('[^']*')", r"CAST(\2 AS \1)", text)


def rows_of(text):
    """The rows of `VALUES …`, each a list."""
    tokens = tokens_of(text)
    if upper(tokens[0]) != "VALUES":
        raise Left("rows that are no VALUES")
    rows = []
    for part in split(tokens[1:]):
        is_row = part[0][1] == "(" and closing(part, 0) == len(part) - 1
        rows.append([value_of(cell) for cell in split(part[1:-1])] if is_row else [value_of(part)])
    return rows


def value_of(cell):
    """A literal, with a cast or without one."""
    first = upper(cell[0])
    if first in ("CAST", "TRY_CAST"):
        inner = cell[2:-1]
        place = max(n for n, token in enumerate(inner) if upper(token) == "AS" and depths_of(inner)[n] == 0)
        return value_of(inner[:place])
    if first == "ARRAY":
        return [value_of(part) for part in split(cell[2:-1])]
    if first == "-":
        return -value_of(cell[1:])
    if len(cell) == 2 and cell[0][0] == "word" and cell[1][0] == "text":
        return int(cell[1][1].strip("'")) if first in ("BIGINT", "INTEGER") else value_of(cell[1:])
    if len(cell) != 1:
        raise Left(f"the value {written(cell)}")
    words = {"NULL": None, "TRUE": True, "FALSE": False}
    if first in words:
        return words[first]
    kind, word = cell[0]
    return word[1:-1].replace("''", "'") if kind == "text" else float(word) if re.search(r"[.eE]", word) else int(word)
