"""`aegis-export-audit`: a tenant's receipts out of the server, verified on the way if asked."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from ..receipts import BadInput, ExportReport, Roots, verify_export
from . import _program
from .verify_receipts import add_roots, describe, exit_code


def main(arguments: list[str] | None = None) -> int:
    """The program."""
    parser = _program.parser("Exports the tenant's receipts as JSON lines. Role: admin or auditor.")
    parser.add_argument("--out", metavar="FILE", help="where to; standard output where it is not given")
    parser.add_argument("--verify", action="store_true", help="verify what was exported; exit 1 where it is invalid")
    add_roots(parser)
    options = parser.parse_args(arguments)
    if options.out is None and (options.json or options.verify):
        parser.error("--json and --verify need --out: standard output has the receipts")
    if options.root and not options.verify:
        parser.error("--root is for --verify")
    return _program.run(lambda: _export(options))


def _export(options: argparse.Namespace) -> int:
    roots = Roots.read(options.root)
    with _program.client(options) as client:
        try:
            if options.out is not None:
                return _to_file(options, roots, client.export_receipts)
            client.export_receipts(sys.stdout.buffer)
            sys.stdout.buffer.flush()
        except (OSError, BadInput) as error:
            return _program.complain(f"{options.out or 'standard output'}: {error}", _program.BAD_INPUT)
    return _program.DONE


def _to_file(options: argparse.Namespace, roots: Roots | None, export: Callable[[BinaryIO], None]) -> int:
    """Whole or not at all: an export that breaks off leaves no file."""
    path = Path(options.out)
    handle, partial = tempfile.mkstemp(prefix=path.name, suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(handle, "w+b") as out:
            export(out)
            lines = _lines(out)
            report = _verified(out, roots) if options.verify else None
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
    found = {"out": options.out, "receipts": lines, "verification": report.as_json() if report else None}
    _program.show(found, f"{lines} receipts in {options.out}" + (f"; {describe(report)}" if report else ""), options)
    return exit_code(report) if report else _program.DONE


def _lines(out: BinaryIO) -> int:
    out.seek(0)
    return sum(1 for _ in out)


def _verified(out: BinaryIO, roots: Roots | None) -> ExportReport:
    out.seek(0)
    return verify_export(out, roots)


if __name__ == "__main__":
    sys.exit(main())
