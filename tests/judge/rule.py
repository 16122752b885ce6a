"""A rule file: what of its header the judge needs, and its query in DuckDB's words."""

import re

UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
SIDE_TABLES = ["first_seen", "baseline", "registry", "registry_action"]
"""By how their columns begin; what is registered of actions is a part of `registry`, and beside it here."""


class Rule:
    def __init__(self, text, fields=()):
        """`fields` are columns that are compared too. Only a rule without a window has some: each of its rows is of its own instant."""
        self.text, self.fields = text, list(fields)
        header, self.query = re.match(r"/\* rule\n(.*?)\*/\n(.*)", text, re.S).groups()
        line = dict(re.findall(r"^(\w+): *([^#\n]*)", header, re.M))
        self.id, self.name, self.severity = (line[name].strip() for name in ("id", "name", "severity"))
        # A rule's tests run one that is disabled, too.
        self.mode = line["mode"].strip().replace("disabled", "log_only")
        self.window = span(line["window"])
        self.suppress = span(line["suppress"]) if line.get("suppress") else None
        self.key = re.findall(r"\w+", line["key"])
        contains = bool(re.findall(r"\w+", line.get("respond", "")))
        self.verified = line.get("requires", "verified" if contains else "any").strip() == "verified"
        self.waits = "FOLLOWING" in self.query
        self.sides = [table for table in SIDE_TABLES if re.search(rf"\b{table}_", self.query)]
        self.reads_alerts = bool(re.search(r"\bFROM alerts\b", self.query))
        # DuckDB has no cast from a time to its microseconds, and other names for some functions (see `open_database`).
        self.sql = re.sub(r"CAST\(ts AS BIGINT\)", "epoch_us(ts)", self.query)

    def sources(self):
        """Names of the rules whose alerts it reads."""
        named = re.search(r"\brule_name (?:= |IN \()('[^)]*?'(?:,\s*'[^)]*?')*)", self.query)
        return re.findall(r"'([^']*)'", named.group(1)) if self.reads_alerts else []


def span(text):
    """Microseconds."""
    number, unit = re.fullmatch(r"(\d+)([smhd])", text.strip()).groups()
    return int(number) * UNITS_S[unit] * 1_000_000
