"""Whole documents: depth up to its limit, whitespace wherever it may stand, small documents of every shape, and random ones."""

import random
from collections.abc import Iterator
from itertools import product

from accepted import random_key, random_value, seeded, spell
from corpus import Vector, text
from strict_reader import MAX_DEPTH, WHITESPACE


def depth_steps() -> Iterator[Vector]:
    for levels in range(3, MAX_DEPTH + 1):
        if levels % 2:
            yield text(f"{levels} arrays around a number", "[" * levels + "0" + "]" * levels)
        else:
            yield text(f"{levels} objects around a number", '{"":' * levels + "0" + "}" * levels)


def depth_shapes() -> Iterator[Vector]:
    """Arrays and objects in random turn, with siblings on both sides, never more than the limit open at once."""
    rng = seeded("depth_shapes")
    for number in range(60):
        levels = MAX_DEPTH if number % 3 == 0 else rng.randrange(2, MAX_DEPTH)
        yield text(f"{levels} levels of random shape", nested(levels, rng))


def nested(levels: int, rng: random.Random) -> str:
    opened, closed = [], []
    for _ in range(levels):
        if rng.random() < 0.5:
            opened.append("[" + rng.choice(("", "[],", "0,", '"[",')))
            closed.append(rng.choice(("", ",{}", ",null")) + "]")
        else:
            opened.append("{" + rng.choice(('"a":', '"b":[],"a":', '"}":{},"{":')))
            closed.append(rng.choice(("", ',"z":1', ',"0":[{}]')) + "}")
    # Siblings are containers too, so the innermost places have none.
    return "".join(opened[:-2]) + "[[]]" + "".join(reversed(closed[:-2]))


def depth_reopened() -> Iterator[Vector]:
    for times in (2, 3, 10):
        whole = "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)
        yield text(f"the full depth, {times} times one after the other", "[" + ",".join([whole] * times) + "]")


def spaces() -> Iterator[Vector]:
    """Every one of the four kinds at every place, and random runs of them."""
    tokens = ["{", '"b"', ":", "[", "1", ",", "-2.5", ",", "{", "}", "]", ",", '"a"', ":", "null", "}"]
    for place in range(len(tokens) + 1):
        for space in WHITESPACE:
            yield text(f"{space!r} at place {place}", "".join([*tokens[:place], space, *tokens[place:]]))
    rng = seeded("spaces")
    for _ in range(40):
        gaps = ["".join(rng.choice(WHITESPACE) for _ in range(rng.randrange(4))) for _ in range(len(tokens) + 1)]
        yield text("random spaces everywhere", gaps[0] + "".join(token + gap for token, gap in zip(tokens, gaps[1:], strict=True)))


def small_documents() -> Iterator[Vector]:
    scalars = ["null", "true", "false", "0", "-1", "1.5", '""', '"a"', "[]", "{}"]
    for scalar in scalars:
        yield text(f"{scalar} in an object", f'{{"a":{scalar}}}')
    for one, other in product(scalars, repeat=2):
        yield text(f"{one} and {other} in an array", f"[{one},{other}]")
        yield text(f"{one} and {other} in an object", f'{{"b":{one},"a":{other}}}')


def more_actions() -> Iterator[Vector]:
    rng = seeded("more_actions")
    for _ in range(200):
        action = {
            "tool": rng.choice(["github", "mail", "shell", "mcp:files", "stripe", "größe", "工具"]),
            "action": rng.choice(["read", "merge_pull_request", "send_email", "delete_branch", "execute", "löschen", "支払い"]),
            "resource": rng.choice([None, "", "acme/api#17", "arn:aws:s3:::bucket/key", "https://example.com/a?b=c&d=é", "/etc/../x y", "😀"]),
            "mutates_state": rng.random() < 0.5,
            "parameters": {random_key(rng): random_value(rng, 3) for _ in range(rng.randrange(6))},
        }
        yield text("a random action", spell(action, rng))


def more_documents() -> Iterator[Vector]:
    rng = seeded("more_documents")
    for _ in range(450):
        yield text("a random document, its whitespace, key order and escapes random too", spell(random_value(rng, 4), rng))


CLASSES = [depth_steps, depth_shapes, depth_reopened, spaces, small_documents, more_actions, more_documents]
