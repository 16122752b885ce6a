"""A case: an export, the pinned keys, and what every verifier must say, which the case's maker knows from how it was made."""

import base64
import json
from dataclasses import dataclass

from sealing import PINNED, line

BAD_INPUT = 2
# Of an id that a failure repeats, characters.
SHOWN = 200


@dataclass(frozen=True)
class Case:
    """`lines` are objects, or bytes for what is none. `code` is the reason of the failure, `at` its place in `lines`."""

    description: str
    lines: list[dict | bytes]
    code: str | None = None
    at: int = -1
    roots: tuple[str, ...] = (PINNED.root,)
    bad_input: bool = False
    ending: bytes = b"\n"

    def vector(self, case_id: str, class_name: str) -> dict:
        texts = [one if isinstance(one, bytes) else line(one) for one in self.lines]
        data = self.ending.join(texts) + (self.ending if texts else b"")
        told = {"exit": BAD_INPUT, "report": None} if self.bad_input else self.told()
        beginning = {"id": case_id, "class": class_name, "description": self.description, "roots": list(self.roots)}
        return {**beginning, "input": base64.b64encode(data).decode(), **told}

    def told(self) -> dict:
        failing = None if self.code is None else self.at % len(self.lines)
        good = self.objects(self.lines[:failing])
        bodies = [(value, value.get("receipt", value)) for value in good]
        chained = [(value, body) for value, body in bodies if "schema" in body]
        lanes: dict[str, dict] = {}
        for _value, body in chained:
            span = lanes.setdefault(body["lane"], {"starts_at": body["seq"], "last_seq": 0, "closed": False, "gaps": 0})
            span["last_seq"], span["closed"] = body["seq"], body["phase"] == "close"
            span["gaps"] += body["phase"] == "gap"
        report = {
            "verdict": "invalid" if self.code else "valid" if self.roots else "self-consistent",
            "receipts": len(good),
            "older_form": len(good) - len(chained),
            "proofs": sum("proof" in value for value, _body in chained),
            "events": sum("receipt" in value for value, _body in chained),
            "lanes": dict(sorted(lanes.items())),
            "failure": None if failing is None else self.failure(failing),
        }
        return {"exit": int(self.code is not None), "report": report}

    @staticmethod
    def objects(lines: list[dict | bytes]) -> list[dict]:
        return [json.loads(one) if isinstance(one, bytes) else one for one in lines if not isinstance(one, bytes) or one.strip()]

    def failure(self, place: int) -> dict:
        value = self.objects([self.lines[place]])[0]
        body = value["receipt"] if isinstance(value.get("receipt"), dict) else value
        seq = body.get("seq")
        shown = {key: body[key][:SHOWN] if isinstance(body.get(key), str) else None for key in ("event_id", "lane")}
        return {"line": place + 1, "code": self.code, **shown, "seq": seq if type(seq) is int else None}
