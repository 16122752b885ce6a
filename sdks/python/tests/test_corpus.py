"""Every vector of the shared corpus: the same bytes and the same reasons as in every other language."""

import base64
import hashlib
import io
import json

import pytest
from where import CORPUS

from aegisagent import canon, models
from aegisagent.errors import CanonError, ConfigError
from aegisagent.receipts import BadInput, Roots, verify_export

LIMITS = {"max_bytes": canon.DEFAULT_MAX_BYTES}
INTEROPERABILITY = [
    ("github", "merge_pull_request", "payments-service#482", True, {"base_branch": "main"}, "6e729c788f908c95e564d246353ceeee0895630175d19ee34b06fdec32f2cc60"),
    ("github", "create_pull_request", None, True, {"title": "Café ☕ déjà vu"}, "30ea153603d6576084ec4d431ec3ff9579ba69eff656101fcbbec5a8c22d0be4"),
    ("t", "x", None, False, {"z": 1, "a": 2, "é": 3}, "109d964419d41d68dec2667a0e42b1d105c42a8df389b2ffab7b4e0e7c502743"),
    ("github", "merge_pull_request", "r", True, {"pr_number": 482, "draft": False}, "3781fa8f7d8a5cd13c2686a3e71bdb2fc52d2fd376a67b6e520ce7358eb55bf6"),
]  # fmt: skip


def vectors(name):
    lines = (CORPUS / "canonical" / name).read_text(encoding="utf-8").splitlines()
    assert len(lines) > 2000
    return [json.loads(line) for line in lines]


@pytest.mark.feature("canonicalize")
def test_there_are_as_many_vectors_as_were_promised():
    assert sum(len(vectors(name)) for name in ("accepted.jsonl", "rejected.jsonl")) >= 10_000


@pytest.mark.feature("canonicalize")
def test_every_accepted_vector_has_its_bytes_and_its_hash():
    for vector in vectors("accepted.jsonl"):
        found = canon.canonicalize(base64.b64decode(vector["input"]), **(LIMITS | vector.get("limits", {})))
        assert found == base64.b64decode(vector["canonical"]), vector
        assert hashlib.sha256(found).hexdigest() == vector["sha256"], vector["id"]


@pytest.mark.feature("canonicalize")
def test_every_rejected_vector_has_its_reason():
    for vector in vectors("rejected.jsonl"):
        with pytest.raises(CanonError) as rejection:
            canon.canonicalize(base64.b64decode(vector["input"]), **(LIMITS | vector.get("limits", {})))
        assert rejection.value.reason == vector["reason"], vector


@pytest.mark.feature("canonicalize")
@pytest.mark.parametrize("folder", ["canonical", "receipts"])
def test_no_line_of_any_release_has_changed(folder):
    manifest = json.loads((CORPUS / folder / "manifest.json").read_text())
    assert manifest["scheme"] == {"canonical": canon.CANON_VERSION, "receipts": "aegis-receipt-1"}[folder]
    pins = [(name, pin) for release in manifest["releases"] for name, pin in release["files"].items() if name.endswith(".jsonl")]
    assert pins
    for name, pin in pins:
        lines = (CORPUS / folder / name).read_bytes().splitlines(keepends=True)[: pin["lines"]]
        assert (len(lines), hashlib.sha256(b"".join(lines)).hexdigest()) == (pin["lines"], pin["sha256"]), name


@pytest.mark.feature("action-hash")
def test_action_hashes_are_those_of_the_contract():
    for *five, expected in INTEROPERABILITY:
        assert canon.action_hash(*five) == expected


FIVE = {"tool": str, "action": str, "resource": (str, type(None)), "mutates_state": bool, "parameters": dict}


@pytest.mark.feature("action-hash")
def test_the_action_hash_of_every_action_of_the_corpus_is_its_hash():
    """The five values make the very text that was hashed, whatever stands in the parameters."""
    found = 0
    for vector in vectors("accepted.jsonl"):
        value = canon.parse_strict(base64.b64decode(vector["input"]), **(LIMITS | vector.get("limits", {})))
        if type(value) is not dict or value.keys() != FIVE.keys() or not all(isinstance(value[name], kind) for name, kind in FIVE.items()):
            continue
        found += 1
        assert canon.action_hash(**value) == vector["sha256"], vector["id"]
        assert models.ToolCall(**value).action_hash() == vector["sha256"], vector["id"]
    assert found >= 200


@pytest.mark.feature("verify-receipts")
@pytest.mark.parametrize("case", json.loads((CORPUS / "receipts/index.json").read_text())["cases"], ids=lambda c: c["about"])
def test_every_export_has_its_verdict(case):
    roots = Roots.read([str(CORPUS / "receipts/root.pub")]) if case["root_pinned"] else None
    path = CORPUS / "receipts" / case["file"]
    with path.open("rb") as lines:
        report = verify_export(lines, roots)
    assert report.verdict.value == case["verdict"]
    found = report.as_json()["failure"]
    if case["failure"] is None:
        assert found is None
        assert report.receipts == case["lines"]
    else:
        found.pop("message")
        assert found == case["failure"]


def told(case):
    try:
        report = verify_export(io.BytesIO(base64.b64decode(case["input"])), Roots.read(case["roots"])).as_json()
    except (BadInput, ConfigError):
        return {"exit": 2, "report": None}
    if report["failure"] is not None:
        del report["failure"]["message"]
    return {"exit": int(report["verdict"] == "invalid"), "report": report}


@pytest.mark.feature("verify-receipts")
def test_every_case_of_receipts_has_its_report():
    cases = [json.loads(line) for line in (CORPUS / "receipts/cases.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(cases) > 800
    for case in cases:
        assert told(case) == {"exit": case["exit"], "report": case["report"]}, (case["id"], case["description"])
