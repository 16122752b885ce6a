"""`aegis-verify-receipts FILE [--root KEY]…`: verifies an export offline."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..receipts import BadInput, ExportReport, Roots, Verdict, verify_export
from . import _program


def main(arguments: list[str] | None = None) -> int:
    """The program."""
    parser = _program.parser("Verifies an export of receipts: hashes, links, sequence, proofs and event digests.", calls_server=False)
    parser.add_argument("file", metavar="FILE", help="the export (JSON lines); - for standard input")
    add_roots(parser)
    options = parser.parse_args(arguments)
    return _program.run(lambda: _verify(options))


def add_roots(parser: argparse.ArgumentParser) -> None:
    """The option that pins keys."""
    text = "a trusted public key, base64 or a file with it; repeatable. Without one the best verdict is self-consistent"
    parser.add_argument("--root", action="append", default=[], metavar="KEY", help=text)


def _verify(options: argparse.Namespace) -> int:
    roots = Roots.read(options.root)
    try:
        if options.file == "-":
            report = verify_export(sys.stdin.buffer, roots)
        else:
            with Path(options.file).open("rb") as lines:
                report = verify_export(lines, roots)
    except (OSError, BadInput) as error:
        return _program.complain(f"{options.file}: {error}", _program.BAD_INPUT)
    _program.show(report.as_json(), describe(report), options)
    return exit_code(report)


def exit_code(report: ExportReport) -> int:
    """0 for valid and self-consistent, 1 for invalid."""
    return _program.SAID_NO if report.verdict is Verdict.INVALID else _program.DONE


def describe(report: ExportReport) -> str:
    """The result in one line."""
    gaps = sum(lane.gaps for lane in report.lanes.values())
    counts = f"{report.receipts} receipts in {len(report.lanes)} lanes, {report.proofs} proofs, {gaps} declared gaps"
    if report.failure is not None:
        failure = report.failure
        receipt = _program.one_line(failure.event_id or "that names no event")
        place = "" if failure.lane is None else f", lane {_program.one_line(failure.lane)} seq {failure.seq}"
        reason = f"{failure.code}: {failure.message}"
        return f"invalid: receipt {receipt} (line {report.line}{place}): {reason}; {counts} hold before it"
    if report.verdict is Verdict.VALID:
        return f"valid: {counts}"
    return f"self-consistent (no key pinned): {counts}"


if __name__ == "__main__":
    sys.exit(main())
