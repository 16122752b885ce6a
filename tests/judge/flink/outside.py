"""What is outside of what is judged: what Flink refuses, and where it answers something else than SQL:2016 has. Each of these is asked, so that what
a later Flink can do is noticed, and comes to be judged."""

QUERY = """SELECT * FROM {table} MATCH_RECOGNIZE (
  PARTITION BY p, q ORDER BY {order} MEASURES {measures} {rows} PER MATCH AFTER MATCH SKIP PAST LAST ROW PATTERN ({pattern}) DEFINE {define}
){alias}"""
X, Y = "a AS a.tool = 'x'", "b AS b.tool = 'y'"
BOTH = f"{X}, {Y}"

REFUSED = {
    "alternation": ({"pattern": "(a | b) c"}, "branching patterns"),
    "a group": ({"pattern": "(a b)+ c"}, "Group patterns"),
    "PERMUTE": ({"pattern": "PERMUTE(a, b)"}, "PERMUTE patterns"),
    "a variable twice": ({"pattern": "a b a"}, "must be unique"),
    "a reluctant optional variable": ({"pattern": "a?? b"}, "Reluctant optional variables"),
    "a greedy last variable": ({"pattern": "a b+"}, "Greedy quantifiers are not allowed as the last element"),
    "an optional variable behind a greedy one": ({"pattern": "a+ b? c"}, "Optional pattern cannot be preceded by greedy"),
    "an empty match": ({"pattern": "a*? b*?"}, "empty matches"),
    "ALL ROWS PER MATCH": ({"pattern": "a b", "rows": "ALL ROWS"}, "All rows per match"),
    "no least number of rows": ({"pattern": "a{,2} b"}, "from should be a positive number"),
    "DISTINCT": ({"pattern": "a b", "measures": "COUNT(DISTINCT a.tool) AS m"}, "DISTINCT"),
    "PREV": ({"pattern": "a b", "define": "a AS a.tool = 'x', b AS PREV(b.tool, 1) = 'x'"}, "physical offsets"),
    "NEXT": ({"pattern": "a b", "define": "a AS a.tool = 'x', b AS NEXT(b.tool, 1) = 'x'"}, "physical offsets"),
    "CLASSIFIER": ({"pattern": "a b", "measures": "CLASSIFIER() AS m"}, "CLASSIFIER"),
    "MATCH_NUMBER": ({"pattern": "a b", "measures": "MATCH_NUMBER() AS m"}, "MATCH_NUMBER"),
}
"""What Flink does not run, and a word of what it says of it."""

COUNT = "COUNT(event_id) AS m"
DIFFERENT = {
    "a greedy variable never gives back": ({"pattern": "a+ b", "measures": COUNT, "define": f"a AS a.tool IN ('x', 'y'), {Y}"}, "xyz", [2], []),
    "a greedy variable that is full": ({"pattern": "a b{1,2} c", "measures": COUNT, "define": f"{BOTH}, c AS TRUE"}, "xyyy", [4], []),
    "an optional last variable": ({"pattern": "a b?", "measures": COUNT, "define": BOTH}, "xyz", [2], [1]),
}
"""Where either answers something else: of which rows (by their tools), what the engine's measure is of each match, and what Flink's."""


def query_of(parts, table, order, alias=""):
    defaults = {"measures": COUNT, "rows": "ONE ROW", "define": BOTH}
    return QUERY.format(table=table, order=order, alias=alias, **(defaults | parts))


def rows_of(tools):
    same = {"p": "h", "q": "a", "decision": None, "risk_score": 1, "mutates_state": None}
    return [same | {"n": n, "at_ms": n, "event_id": f"r{n}", "tool": tool} for n, tool in enumerate(tools)]


def problems(flink, ask_engine):
    """What is not as it stands here."""
    found = []
    for name, (parts, words) in REFUSED.items():
        answer = flink.job([(lambda table, parts=parts: query_of(parts, table, "ts, n"), rows_of("xyz"))])
        if "refused" not in answer:
            found.append(f"Flink runs {name}: have patterns.py make it")
        elif words not in answer["says"]:
            found.append(f"Flink refuses {name} in other words: {answer['says'][:300]}")
    for name, (parts, tools, ours, theirs) in DIFFERENT.items():
        told = [row[-1] for row in flink.ask(lambda table, parts=parts: query_of(parts, table, "ts, n"), rows_of(tools))]
        own = [row[-1] for row in ask_engine(query_of(parts, "input", "at_ms, n", " AS m"), rows_of(tools), ["m"])]
        if (own, told) != (ours, theirs):
            found.append(f"{name}: the engine must answer {ours} and answers {own}; Flink is known to answer {theirs} and answers {told}")
    return found
