"""Many tasks on one client, each in a run and with a label of its own."""

import anyio
import anyio.lowlevel

from aegisagent import AsyncClient, Denied, protect, run, source_trust


async def main() -> None:
    async with AsyncClient() as client:

        @protect(client, tool="crm", action="update_customer", resource=lambda p: p["id"])
        async def update_customer(id: str, email: str) -> str:  # noqa: A002  # as it is registered
            await anyio.lowlevel.checkpoint()
            return f"{id} has {email}"

        async def handle(number: int, label: str) -> None:
            with run(f"ticket-{number}"), source_trust(label):
                try:
                    print(await update_customer(f"customer-{number}", "dana@example.test"))
                except Denied as denied:
                    print(f"ticket {number}: {denied.code}")

        async with anyio.create_task_group() as tasks:
            for number, label in enumerate(["trusted_internal_unsigned", "untrusted_external"] * 5):
                tasks.start_soon(handle, number, label)


anyio.run(main)
