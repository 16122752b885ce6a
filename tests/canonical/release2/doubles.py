"""Doubles around every edge of the format: each binade and each power of ten with a neighbour, the switches of notation, points halfway."""

import math
import random
import struct
from collections.abc import Iterator
from decimal import Decimal

from accepted import exact_literal, float_literal, random_double, seeded
from corpus import Vector, text

LEAST_EXPONENT, MOST_EXPONENT = -1074, 1023


def binades() -> Iterator[Vector]:
    """The first double of each binade, and each subnormal of one bit."""
    for exponent in range(LEAST_EXPONENT, MOST_EXPONENT + 1):
        double = math.ldexp(-1.0 if exponent % 3 == 0 else 1.0, exponent)
        yield text(f"2^{exponent}, {style_name(exponent)}", spelled(double, exponent))


def binade_neighbours() -> Iterator[Vector]:
    """Where the distance between doubles doubles: the last double of a binade, and the second of the next."""
    for exponent in range(LEAST_EXPONENT, MOST_EXPONENT + 1):
        side, limit = ("below", 0.0) if exponent % 2 else ("above", math.inf)
        double = math.nextafter(math.ldexp(1.0, exponent), limit)
        yield text(f"the double {side} 2^{exponent}, {style_name(exponent // 2)}", spelled(double, exponent // 2))


def style_name(number: int) -> str:
    return "17 digits" if number % 2 else "shortest digits"


def spelled(double: float, number: int) -> str:
    return f"{double:.16e}" if number % 2 else float_literal(repr(double))


def powers_of_ten() -> Iterator[Vector]:
    for exponent in range(-324, 309):
        yield text(f"10^{exponent}", f"{'-' if exponent % 5 == 0 else ''}1{'E' if exponent % 2 else 'e'}{exponent}")


def power_of_ten_neighbours() -> Iterator[Vector]:
    for exponent in range(-323, 309):
        side, limit = ("below", 0.0) if exponent % 2 else ("above", math.inf)
        yield text(f"the double {side} 10^{exponent}", float_literal(repr(math.nextafter(float(f"1e{exponent}"), limit))))


def edge_walks() -> Iterator[Vector]:
    """The doubles on both sides of where notation, exactness or the format changes."""
    edges = [1e21, 1e-6, 1e-7, 2.0**53, 2.0**63, 2.0**64, 1e22, 1e23, 1e16, 1e17, 2.2250738585072014e-308]
    for edge in edges:
        for steps in range(-7, 8):
            yield text(f"{steps:+} doubles from {edge!r}", float_literal(repr(walked(edge, steps))))
    for steps in range(12):
        yield text(f"{steps} doubles under the largest", float_literal(repr(walked(1.7976931348623157e308, -steps))))
        yield text(f"{steps + 1} doubles over zero", float_literal(repr(walked(0.0, steps + 1))))


def walked(double: float, steps: int) -> float:
    for _ in range(abs(steps)):
        double = math.nextafter(double, math.copysign(math.inf, steps))
    return double


def subnormals() -> Iterator[Vector]:
    rng = seeded("subnormals")
    for number in range(160):
        bits = rng.getrandbits(rng.randrange(2, 53))
        double = struct.unpack(">d", bits.to_bytes(8, "big"))[0]
        yield text(f"a subnormal, {style_name(number)}", spelled(-double if number % 4 == 3 else double, number))


def few_digits() -> Iterator[Vector]:
    """Decimals of n digits: the shortest spelling that reads back is found, not the first that fits."""
    rng = seeded("few_digits")
    for digits in range(1, 18):
        for _ in range(16):
            number = rng.randrange(10 ** (digits - 1), 10**digits)
            yield text(f"{digits} significant digits", f"{'-' if rng.random() < 0.3 else ''}{number}e{rng.randrange(-320, 290)}")


def random_bits() -> Iterator[Vector]:
    rng = seeded("random_bits")
    for number in range(300):
        yield text(f"random bits of a double, {style_name(number)}", spelled(random_double(rng), number))


def halfway_everywhere() -> Iterator[Vector]:
    """The exact point between two doubles, and one digit to either side of it, over all exponents."""
    rng = seeded("halfway_everywhere")
    for _ in range(60):
        below = abs(random_double(rng))
        above = math.nextafter(below, math.inf)
        if math.isinf(above):
            continue
        halfway = (Decimal(below) + Decimal(above)) / 2
        least = Decimal((0, (1,), halfway.as_tuple().exponent - rng.randrange(1, 20)))
        yield text("halfway between two doubles", exact_literal(halfway))
        yield text("just over halfway between two doubles", exact_literal(halfway + least))
        yield text("just under halfway between two doubles", exact_literal(halfway - least))
    limit = (Decimal(1.7976931348623157e308) + Decimal(2) ** 1024) / 2
    yield text("just under halfway between the largest double and 2^1024", exact_literal(limit - 1))
    yield text("halfway between zero and the least double, negative", exact_literal(-Decimal(5e-324) / 2))


def moved_points() -> Iterator[Vector]:
    """One double, its point moved, its exponent spelled in other ways, zeros added where they mean nothing."""
    rng = seeded("moved_points")
    for _ in range(60):
        double = random_double(rng) if rng.random() < 0.5 else rng.uniform(-1e9, 1e9)
        mantissa, exponent = f"{double:.16e}".split("e")
        sign, digits = ("-", mantissa[1:]) if mantissa.startswith("-") else ("", mantissa)
        for moved in moved_spellings(sign, digits.replace(".", ""), int(exponent), rng):
            yield text("one double, its point moved", moved)


def moved_spellings(sign: str, digits: str, exponent: int, rng: random.Random) -> Iterator[str]:
    place = rng.randrange(2, len(digits))
    zeros = "0" * rng.randrange(1, 30)
    yield f"{sign}{digits[:place]}.{digits[place:]}e{exponent - place + 1}"
    yield f"{sign}{digits}E{exponent - len(digits) + 1:+}"
    yield f"{sign}0.{zeros}{digits}e{exponent + len(zeros) + 1:+04}"
    yield f"{sign}{digits}{zeros}.0e{exponent - len(digits) + 1 - len(zeros)}"
    yield f"{sign}{digits[0]}.{digits[1:]}{zeros}e{'-' if exponent < 0 else '+'}{'0' * rng.randrange(4)}{abs(exponent)}"


CLASSES = [
    binades, binade_neighbours, powers_of_ten, power_of_ten_neighbours, edge_walks, subnormals, few_digits, random_bits, halfway_everywhere, moved_points,
]  # fmt: skip
