"""What protected functions are given, how it hashes, and one that is none."""

from aegisagent import canon


def hash_of(parameters, resource="customer-1"):
    return canon.action_hash("crm", "update_note", resource, True, parameters)


def many_times(levels, thing="x", pair=lambda one: [one, one]):
    """What refers to one thing 2^levels times."""
    for _ in range(levels):
        thing = pair(thing)
    return thing


async def coroutine():
    pass
