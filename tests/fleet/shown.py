"""What `make fleet` prints: what runs where, and what to try next."""

import os
import shlex
import time


def variables(fleet, agent):
    """Addresses and keys for a shell; the file is its owner's alone."""
    edges = {f"EDGE_{number}": f"http://127.0.0.1:{edge.port}" for number, edge in enumerate(fleet.edges.values(), 1)}
    values = {"CONTROL": f"http://127.0.0.1:{fleet.control.port}"} | edges
    values |= {"ADMIN": fleet.tenant.admin, "TOKEN": agent.token, "AGENT": agent.id}
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in values.items())


def rows(fleet):
    leader = fleet.cluster.leader("ASE")
    for node in fleet.cluster.nodes:
        yield node.name, node.url, node.pid, node.folder / "log", "leads the stream of events" if node is leader else ""
    yield "postgres", f"127.0.0.1:{fleet.postgres.port}", fleet.postgres.pid, fleet.postgres.folder / "log", "tables of control"
    yield "control", f"http://127.0.0.1:{fleet.control.port}", fleet.control.pid, fleet.control.log_file, ""
    for edge in fleet.edges.values():
        yield edge.edge_id, f"http://127.0.0.1:{edge.port}", edge.pid, edge.log_file, ""


def shown(fleet, folder, rate, until):
    lines = [f"fleet: running in {folder}, process {os.getpid()} watches over it", ""]
    for name, where, pid, log, note in rows(fleet):
        lines.append(f"  {name:<9} {where:<24} pid {pid:<8} {log}{f'  ({note})' if note else ''}")
    lines += [
        f"  load      {rate} calls a second at each edge, and GitHub's webhooks at control, until {time.strftime('%H:%M', time.localtime(until))}",
        "",
        "Try next:",
        "",
        f"  . {folder}/env.sh",
        "  # ask an edge",
        "  curl -s $EDGE_1/v1/authorize -H \"Authorization: Bearer $TOKEN\" -H 'Content-Type: application/json' -d '{",
        '    "agent": {"id": "me"}, "context": {"source_trust": "trusted_internal_unsigned"}, "trace": {"run_id": "run-1"},',
        '    "tool_call": {"tool": "crm", "action": "update_customer", "mutates_state": true, "parameters": {"id": "7"}}}\'',
        "  # freeze the agent everywhere; ask again, and the answer is agent_frozen",
        "  curl -s $CONTROL/v1/agents/$AGENT/freeze -H \"Authorization: Bearer $ADMIN\" -H 'Content-Type: application/json' -d '{\"reason\": \"I try it\"}'",
        "  # which edges live, and how far they are behind",
        '  curl -s $CONTROL/v1/edges -H "Authorization: Bearer $ADMIN"',
        "  # take something away: the edges go on",
        f"  kill -9 {fleet.cluster.nodes[0].pid}",
        "",
        "Stop it, and remove its folder: make fleet-down",
        "",
    ]
    return "\n".join(lines)
