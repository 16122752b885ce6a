"""Reads the cases out of a test class of Trino's: a query, and the rows that it must answer, or that it must fail. Reads what such classes are
made of (texts put together with `+`, `format` and `formatted`, variables that hold one) and nothing else of Java."""

import re
from dataclasses import dataclass

TOKEN = re.compile(
    r'(?P<space>\s+|//[^\n]*|/\*.*?\*/)|"""[ \t]*\n(?P<block>.*?)"""|"(?P<text>(?:[^"\\]|\\.)*)"|(?P<word>[A-Za-z_]\w*)|(?P<sign>.)', re.S
)
ESCAPES = {"n": "\n", "t": "\t", '"': '"', "\\": "\\", "'": "'"}


@dataclass
class Case:
    """`rows` is the query that answers the same rows; None: none. `fails`: it must fail."""

    test: str
    query: str
    rows: str | None = None
    fails: bool = False


class Unread(Exception):
    """What stands there is none of what is read."""


def tokens_of(source):
    found = []
    for token in TOKEN.finditer(source):
        kind = token.lastgroup
        if kind in ("block", "text"):
            found.append(("text", re.sub(r"\\(.)", lambda escape: ESCAPES[escape.group(1)], token.group(kind))))
        elif kind != "space":
            found.append((kind, token.group()))
    return found


class Reader:
    def __init__(self, source):
        self.tokens, self.at, self.variables = tokens_of(source), 0, {}

    def sees(self, *words):
        return [word for _, word in self.tokens[self.at : self.at + len(words)]] == list(words)

    def take(self, *words):
        """Goes on behind these words, if they stand here."""
        if not self.sees(*words):
            return False
        self.at += len(words)
        return True

    def expect(self, *words):
        if not self.take(*words):
            raise Unread(self.tokens[self.at : self.at + 3])

    def text(self):
        """A text, as Java puts it together."""
        said = self.part()
        while self.take("+"):
            said += self.part()
        return said

    def part(self):
        kind, word = self.tokens[self.at]
        self.at += 1
        if kind == "text":
            said = word
        elif word == "format":
            self.expect("(")
            said = self.text()
            self.take(",")
            said = filled(said, self.arguments())
        elif word in self.variables:
            said = self.variables[word]
        else:
            raise Unread(word)
        while self.take(".", "formatted", "("):
            said = filled(said, self.arguments())
        return said

    def arguments(self):
        """Texts up to the parenthesis that closes."""
        found = []
        while not self.take(")"):
            found.append(self.text())
            self.take(",")
        return found

    def cases(self):
        test, found = "", []
        while self.at < len(self.tokens):
            begin = self.at
            try:
                if self.take("public", "void"):
                    test = self.tokens[self.at][1]
                elif self.take("assertThat", "(", "assertions", ".", "query", "("):
                    found.append(self.case(test))
                elif self.tokens[self.at][0] == "word" and self.tokens[self.at + 1][1] == "=":
                    name = self.tokens[self.at][1]
                    self.at += 2
                    self.variables[name] = self.text()
                else:
                    self.at += 1
            except (Unread, IndexError):
                self.at = begin + 1
        return found

    def case(self, test):
        query = self.text()
        self.expect(")", ")")
        if self.take(".", "matches", "("):
            return Case(test, query, rows=self.text())
        if self.take(".", "returnsEmptyResult"):
            return Case(test, query)
        self.expect(".", "failure")
        return Case(test, query, fails=True)


def filled(said, arguments):
    """A text with `%s` in it, as `format` fills it in."""
    rest = iter(arguments)
    return re.sub(r"%([s%])", lambda mark: "%" if mark.group(1) == "%" else next(rest), said)
