"""Makes corpus/canonical: input bytes, and the canonical form or the reason for a rejection.

    generate.py           appends the vectors the corpus does not have yet; refuses to change or drop one it has
    generate.py --check   writes nothing, and fails if the corpus is not exactly what this program makes

Inputs come from the standard library and seeded generators; canonical forms come from the `rfc8785` package, never from
the implementation under test. The lines of a release stand behind those of the one before and never change: a vector that has
to is a change of the scheme (`manifest.json`, checked by tests/corpus/manifest.py).
"""

import hashlib
import sys
from collections.abc import Iterator

import accepted as accepted_inputs
import corpus
import rejected as rejected_inputs
import release2
import rfc8785
import strict_reader


def size_limits() -> Iterator[tuple[str, bytes, int, bool]]:
    """Description, input, the limit, and whether it is accepted. The corpus uses small limits, to stay small itself."""
    yield "input as long as the limit", b"[1,2,3]", 7, True
    yield "canonical form as long as the limit", b"1e20  ", 21, True
    yield "shorter once it is canonical, but read whole", b"[1, 2]", 6, True
    yield "input one byte over the limit", b"[1,2,3]", 6, False
    yield "spaces count", b"[1]   ", 5, False
    yield "the input is over, its canonical form is not", b"[ 1 ]", 3, False
    yield "the canonical form is over, the input is not", b"1e20", 20, False
    yield "the canonical form of a member is over", b'{"a":[1e20,1e20]}', 30, False
    yield "over the limit and no JSON either", b"[[[[[", 4, False
    yield "over the limit and no UTF-8 either", b"\xff\xff", 1, False


def accepted_vectors() -> Iterator[dict]:
    for make in accepted_inputs.CLASSES:
        for number, (description, data) in enumerate(make(), start=1):
            yield accepted(f"{slug(make)}-{number:03}", slug(make), description, data, {})
    for number, (description, data, max_bytes, fits) in enumerate(size_limits(), start=1):
        if fits:
            yield accepted(f"size-limits-{number:03}", "size-limits", description, data, {"max_bytes": max_bytes})
    for make in release2.ACCEPTED:
        for number, (description, data) in enumerate(make(), start=1):
            yield accepted(f"{slug(make)}-{number:03}", slug(make), description, data, {})


def accepted(vector_id: str, vector_class: str, description: str, data: bytes, limits: dict) -> dict:
    try:
        canonical = rfc8785.dumps(strict_reader.read(data, **limits))
    except strict_reader.Rejected as rejection:
        raise SystemExit(f"{vector_id} ({description}) is built to be accepted, but the reader found {rejection}: {data[:80]!r}") from None
    vector = {"id": vector_id, "class": vector_class, "description": description, "input": corpus.encoded(data)}
    vector |= {"canonical": corpus.encoded(canonical), "sha256": hashlib.sha256(canonical).hexdigest()}
    return vector | ({"limits": limits} if limits else {})


def rejected_vectors() -> Iterator[dict]:
    for reason, make in rejected_inputs.CLASSES:
        for number, (description, data) in enumerate(make(), start=1):
            yield rejected(f"{slug(make)}-{number:03}", slug(make), description, data, reason, {})
    for number, (description, data, max_bytes, fits) in enumerate(size_limits(), start=1):
        if not fits:
            yield rejected(f"size-limits-{number:03}", "size-limits", description, data, "size_exceeded", {"max_bytes": max_bytes})
    for reason, make in release2.REJECTED:
        for number, (description, data) in enumerate(make(), start=1):
            yield rejected(f"{slug(make)}-{number:03}", slug(make), description, data, reason, {})
    for number, (description, data, reason, limits) in enumerate(release2.SEVERAL_FAULTS(), start=1):
        yield rejected(f"{corpus.SEVERAL_FAULTS}-{number:03}", corpus.SEVERAL_FAULTS, description, data, reason, limits)


def rejected(vector_id: str, vector_class: str, description: str, data: bytes, reason: str, limits: dict) -> dict:
    try:
        canonical = rfc8785.dumps(strict_reader.read(data, **limits))
        found = "size_exceeded" if limits and len(canonical) > limits["max_bytes"] else "accepted"
    except strict_reader.Rejected as rejection:
        found = rejection.reason
    # With several faults the reader may name another of them.
    if found != reason and (found == "accepted" or vector_class != corpus.SEVERAL_FAULTS):
        raise SystemExit(f"{vector_id} ({description}) is built to be {reason}, but the reader found {found}: {data[:80]!r}")
    vector = {"id": vector_id, "class": vector_class, "description": description, "input": corpus.encoded(data), "reason": reason}
    return vector | ({"limits": limits} if limits else {})


def slug(make) -> str:
    return make.__name__.replace("_", "-")


def main() -> int:
    check_only = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not check_only:
        print("usage: generate.py [--check]", file=sys.stderr)
        return 2
    complaints = []
    for path, made in [(corpus.ACCEPTED, list(accepted_vectors())), (corpus.REJECTED, list(rejected_vectors()))]:
        stored = corpus.load(path)
        made_by_id = {vector["id"]: vector for vector in made}
        assert len(made_by_id) == len(made), "two vectors have one id"
        for vector in stored:
            if made_by_id.get(vector["id"]) != vector:
                complaints.append(f"{path.name}: {vector['id']} would change or vanish\n  stored {corpus.line(vector)[:300]}")
        stored_ids = {vector["id"] for vector in stored}
        added = [vector["id"] for vector in made if vector["id"] not in stored_ids]
        content = "".join(corpus.line(vector) + "\n" for vector in made)
        if check_only and not complaints and (not path.exists() or path.read_text(encoding="utf-8") != content):
            complaints.append(f"{path.name} is not what generate.py makes ({len(added)} vectors missing); run generate.py")
        if not check_only and not complaints:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
        print(f"{path.name}: {len(made)} vectors, {len(added)} of them {'missing' if check_only else 'new'}")
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
