"""Whole numbers: literals up to ±(2^53 − 1), and doubles that are whole, which have no such limit."""

from collections.abc import Iterator

from accepted import seeded
from corpus import Vector, text

LARGEST = 2**53 - 1


def integer_edges() -> Iterator[Vector]:
    """Around each power of two and of ten, where a type of some language ends."""
    edges = {2**power + step for power in range(1, 54) for step in (-1, 0, 1)} | {10**power + step for power in range(16) for step in (-1, 0, 1)}
    for number in sorted(edge for edge in edges if edge <= LARGEST):
        yield text(f"integer {number}", str(number))
        if number > 2**30:
            yield text(f"integer -{number}", f"-{number}")


def random_integers() -> Iterator[Vector]:
    rng = seeded("random_integers")
    for _ in range(120):
        number = rng.getrandbits(rng.randrange(1, 54))
        yield text("a random integer", f"-{number}" if rng.random() < 0.5 and number else str(number))


def whole_doubles() -> Iterator[Vector]:
    """Whole doubles from 2^53 on keep all digits that tell them apart up to 1e21, and have an exponent from there."""
    for power in range(50, 90):
        for step in (-1, 0, 1):
            number = 2**power + step * max(1, 2 ** (power - 52))
            yield text(f"2^{power} {step:+} unit, as a double", f"{number}{'.0' if power % 2 else 'e0'}")
    rng = seeded("whole_doubles")
    for digits in range(16, 25):
        for _ in range(8):
            yield text(f"a whole double of {digits} digits", f"{'-' if rng.random() < 0.3 else ''}{rng.randrange(10 ** (digits - 1), 10**digits)}.0")


def zeros() -> Iterator[Vector]:
    """Every zero is 0: without a sign, whatever its exponent."""
    for sign in ("", "-"):
        for mantissa in ("0", "0.0", "0.00000000000000000000000000"):
            for exponent in ("", "e0", "E-0", "e+00", "e1", "e308", "e-324", "e-5000", "e5000", "E+2147483648", "e-9223372036854775809"):
                yield text("a zero", f"{sign}{mantissa}{exponent}")


CLASSES = [integer_edges, random_integers, whole_doubles, zeros]
