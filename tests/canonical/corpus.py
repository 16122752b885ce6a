"""The corpus files: where they are, how a vector is written on a line, and what its input is made from."""

import base64
import json
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "corpus" / "canonical"
ACCEPTED = FOLDER / "accepted.jsonl"
REJECTED = FOLDER / "rejected.jsonl"

# The class whose inputs have more than one fault.
SEVERAL_FAULTS = "fault-order"

Vector = tuple[str, bytes]  # description, input


def text(description: str, content: str) -> Vector:
    return description, content.encode("utf-8")


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def decoded(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def line(vector: dict) -> str:
    return json.dumps(vector, ensure_ascii=False, separators=(",", ":"))


def load(path: Path) -> list[dict]:
    if not path.exists():
        return []
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
