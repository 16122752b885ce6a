"""What all programs have in common. A credential never stands in the arguments, which every user of the machine can read."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..client import Client
from ..errors import AegisError, ConfigError
from ..secret import Secret

DONE, SAID_NO, BAD_INPUT = 0, 1, 2

_CREDENTIAL = "The credential is read from AEGISAGENT_TOKEN, from the file that AEGISAGENT_TOKEN_FILE names, or from --token-file."


def parser(description: str, *, calls_server: bool = True) -> argparse.ArgumentParser:
    """The options that every program has."""
    made = argparse.ArgumentParser(description=description, epilog=_CREDENTIAL if calls_server else None, allow_abbrev=False)
    made.add_argument("--json", action="store_true", help="print JSON")
    if calls_server:
        made.add_argument("--url", help="the server; AEGISAGENT_URL where it is not given, and http://127.0.0.1:8484 where neither is")
        made.add_argument("--token-file", metavar="FILE", help="a file with the credential")
        made.add_argument("--ca-file", metavar="FILE", help="certificates to believe, instead of the usual ones")
        made.add_argument("--allow-plain-http", action="store_true", help="send the credential over http beyond this machine")
    return made


def client(options: argparse.Namespace) -> Client:
    """A client as the options say."""
    token = None
    if options.token_file:
        try:
            token = Secret(Path(options.token_file).read_text(encoding="ascii"))
        except (OSError, ValueError):
            raise ConfigError("--token-file: it cannot be read, or holds no credential") from None
    return Client(options.url, token, ca_file=options.ca_file, allow_plain_http=options.allow_plain_http)


def show(value: dict[str, Any], text: str, options: argparse.Namespace) -> None:
    """Prints a result for a program or for people."""
    print(json.dumps(value, ensure_ascii=False) if options.json else text)


def run(program: Callable[[], int]) -> int:
    """Runs a program; its errors are one line on standard error."""
    try:
        return program()
    except ConfigError as error:
        return complain(str(error), BAD_INPUT)
    except AegisError as error:
        return complain(str(error), SAID_NO)


def complain(text: str, code: int) -> int:
    """Says what went wrong."""
    print(text, file=sys.stderr)
    return code
