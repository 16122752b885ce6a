"""`aegis-freeze-agent AGENT --reason TEXT`: denies an agent everything, at once and everywhere."""

from __future__ import annotations

import argparse
import sys

from . import _program


def main(arguments: list[str] | None = None) -> int:
    """The program."""
    parser = _program.parser("Freezes an agent. Role: admin or analyst. Exit 1 where an edge has not confirmed it yet.")
    parser.add_argument("agent", metavar="AGENT", help="the agent's id")
    parser.add_argument("--reason", required=True, help="why; it stands in the receipt")
    parser.add_argument("--ttl-s", type=int, metavar="SECONDS", help="until then; until somebody unfreezes it where it is not given")
    parser.add_argument("--unfreeze", action="store_true", help="end its freezes instead")
    options = parser.parse_args(arguments)
    if options.unfreeze and options.ttl_s is not None:
        parser.error("--ttl-s is for a freeze")
    return _program.run(lambda: _freeze(options))


def _freeze(options: argparse.Namespace) -> int:
    with _program.client(options) as client:
        if options.unfreeze:
            state = client.unfreeze_agent(options.agent, options.reason)
        else:
            state = client.freeze_agent(options.agent, options.reason, ttl_s=options.ttl_s)
    enforced = state.enforced is True
    found = {"agent": state.target_id, "verdict": state.verdict, "revision": state.revision, "enforced": enforced}
    where = "every edge that lives enforces it" if enforced else "not every edge has confirmed it; see GET /v1/edges"
    _program.show(found, _program.one_line(f"agent {state.target_id} is {state.verdict}; {where}"), options)
    return _program.DONE if enforced else _program.SAID_NO


if __name__ == "__main__":
    sys.exit(main())
