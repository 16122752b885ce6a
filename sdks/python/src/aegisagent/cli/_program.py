"""What all programs have in common. A credential never stands in the arguments, which every user of the machine can read."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..client import Client
from ..errors import AegisError, CanonError, ConfigError
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
    """Prints a result for a program or for people. Of its own encoding, whatever that of the terminal is: JSON in ASCII."""
    print(json.dumps(value) if options.json else text, flush=True)


def one_line(text: object) -> str:
    """What somebody else wrote, as people may be shown it: it begins no line, and commands no terminal."""
    return "".join(character if character.isprintable() else " " for character in str(text))


def run(program: Callable[[], int]) -> int:
    """Runs a program; its errors are one line on standard error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        return program()
    except (ConfigError, CanonError) as error:
        return complain(str(error), BAD_INPUT)
    except AegisError as error:
        return complain(str(error), SAID_NO)
    except OSError as error:
        # What is left to be written would fail again when the interpreter ends, and with another code.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return complain(f"standard output: {error}", BAD_INPUT)


def complain(text: str, code: int) -> int:
    """Says what went wrong."""
    print(one_line(text), file=sys.stderr)
    return code
