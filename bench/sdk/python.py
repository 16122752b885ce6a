"""Overhead of `protect` over the bare HTTP call, and of the strict canonical form over rfc8785. Figures only, no verdict."""

import gc
import json
import math
import pathlib
import platform
import random
import statistics
import time

import anyio
import httpx
import rfc8785
from harness import Aegis

import aegisagent
from aegisagent import canon

OUT = pathlib.Path(__file__).resolve().parents[1] / "out/sdk-python.json"
ROUNDS, CALLS, TASKS = 5, 400, 32


def quantiles(samples):
    """Median and p99 of seconds, in microseconds."""
    ordered = sorted(samples)
    return {"p50_us": statistics.median(ordered) * 1e6, "p99_us": ordered[math.ceil(len(ordered) * 0.99) - 1] * 1e6}


def timed(work, count):
    samples = []
    gc.collect()
    for _ in range(count):
        began = time.perf_counter()
        work()
        samples.append(time.perf_counter() - began)
    return samples


def bare(agent, port, outcome):
    """The same requests by the HTTP library alone: authorize, and what came of it."""
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {agent.token}"}, trust_env=False)
    body = agent.request(action="update_customer", parameters={"id": "1", "email": "dana@example.test"}, run_id="bare")

    def call():
        answer = client.post("/v1/authorize", json=body).json()
        assert answer["decision"] == "allow"
        if outcome:
            done = {"status": "ok", "executed_hash": answer["action_hash"]}
            assert client.post(f"/v1/decisions/{answer['decision_id']}/outcome", json=done).status_code == 201

    return call


def protected(agent, port, outcome):
    client = aegisagent.Client(f"http://127.0.0.1:{port}", agent.token)
    if not outcome:
        client.report = lambda *_: None
    update = aegisagent.protect(client, tool="crm", action="update_customer", resource="customer-1")(lambda id, email: None)

    def call():
        with aegisagent.source_trust("trusted_internal_unsigned"), aegisagent.run("protected"):
            update("1", "dana@example.test")

    return call


def compare(aegis):
    """The two in turn, so that the machine's mood falls on both."""
    tenant = aegis.tenant().register_tools()
    agent = tenant.register_agent()
    found = {}
    for outcome in (False, True):
        works = {"bare": bare(agent, aegis.port, outcome), "protect": protected(agent, aegis.port, outcome)}
        samples = {name: [] for name in works}
        for work in works.values():
            timed(work, 50)
        for _ in range(ROUNDS):
            for name, work in works.items():
                samples[name] += timed(work, CALLS)
        found["with_outcome" if outcome else "authorize_alone"] = {name: quantiles(taken) for name, taken in samples.items()}
    return found


def at_once(aegis):
    """Calls a second of many tasks on one client, with the outcomes."""
    agent = aegis.tenant().register_tools().register_agent()

    async def main():
        async with aegisagent.AsyncClient(f"http://127.0.0.1:{aegis.port}", agent.token) as client:

            @aegisagent.protect(client, tool="crm", action="update_customer")
            async def update(id):
                pass

            async def many():
                for _ in range(CALLS // 8):
                    await update("1")

            with aegisagent.source_trust("trusted_internal_unsigned"), aegisagent.run("many"):
                await update("1")
                began = time.perf_counter()
                async with anyio.create_task_group() as tasks:
                    for _ in range(TASKS):
                        tasks.start_soon(many)
                return TASKS * (CALLS // 8) / (time.perf_counter() - began)

    return anyio.run(main)


def parameters(size, seed=1):
    """Plain parameters whose canonical form has about `size` bytes: texts, numbers, nesting, some of it not ASCII."""
    rng, value = random.Random(seed), {}
    while len(rfc8785.dumps(value)) < size:
        value[f"key-{rng.randrange(10**6)}"] = {
            "text": "Café ☕ " * rng.randrange(1, 6), "count": rng.randrange(10**6), "ratio": rng.random(), "flag": True, "none": None,
            "items": [f"item {number}" for number in range(rng.randrange(1, 6))],
        }  # fmt: skip
    return value


def canonical_forms():
    found = {}
    for size, count in ((1024, 2000), (100 * 1024, 40)):
        value = parameters(size)
        text = json.dumps(value, ensure_ascii=False).encode()
        works = {
            "rfc8785.dumps(value)": lambda value=value: rfc8785.dumps(value), "canonicalize_value(value)": lambda value=value: canon.canonicalize_value(value),
            "json.loads + rfc8785.dumps(text)": lambda text=text: rfc8785.dumps(json.loads(text)), "canonicalize(text)": lambda text=text: canon.canonicalize(text),
        }  # fmt: skip
        assert len({work() for work in works.values()}) == 1
        found[f"{size // 1024} KiB"] = {name: quantiles(timed(work, count)) for name, work in works.items()}
    return found


def main():
    aegis = Aegis().start()
    try:
        figures = {"calls": compare(aegis), "calls_per_s_of_32_tasks": at_once(aegis)}
    finally:
        aegis.close()
    figures |= {"canonical": canonical_forms(), "python": platform.python_version(), "machine": platform.processor() or platform.machine()}
    show(figures)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"\nwritten to {OUT}")


def show(figures):
    print(f"{'':<46}{'p50 µs':>10}{'p99 µs':>10}")
    for what, taken in figures["calls"].items():
        for name, row in taken.items():
            print(f"{what.replace('_', ' ') + ', ' + name:<46}{row['p50_us']:>10.0f}{row['p99_us']:>10.0f}")
        print(f"{'  protect adds':<46}{taken['protect']['p50_us'] - taken['bare']['p50_us']:>10.0f}{'':>10}")
    print(f"{'32 tasks on one client, calls with outcome/s':<46}{figures['calls_per_s_of_32_tasks']:>10.0f}")
    for size, taken in figures["canonical"].items():
        for name, row in taken.items():
            print(f"{size + ', ' + name:<46}{row['p50_us']:>10.1f}{row['p99_us']:>10.1f}")


if __name__ == "__main__":
    main()
