"""Looks up a server's name within a time, which the operating system's own look-up does not take."""

from __future__ import annotations

import concurrent.futures
import ipaddress
import socket
import threading
from typing import Any

import httpcore

_Key = tuple[str, int]


class Names:
    """Each look-up runs on a thread of its own. Who comes while one for the same name is under way waits for that, so that one that hangs
    holds a single thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[_Key, concurrent.futures.Future[list[str]]] = {}

    def addresses(self, host: str, port: int, timeout_s: float) -> list[str]:
        """The addresses of a name; httpcore's ConnectError or ConnectTimeout where there are none, or not in time."""
        if _is_address(host):
            return [host]
        looking = self._looking((host, port))
        # Whoever waits for one that failed gets an error of its own.
        if not concurrent.futures.wait([looking], timeout_s).done:
            raise httpcore.ConnectTimeout("the server's name was not looked up in time")
        if looking.exception() is not None:
            raise httpcore.ConnectError("the server's name is not known")
        return looking.result()

    def _looking(self, key: _Key) -> concurrent.futures.Future[list[str]]:
        with self._lock:
            looking = self._under_way.get(key)
            if looking is None:
                looking = concurrent.futures.Future()
                # A daemon: the program's end waits for no look-up. It comes to its own end behind the lock, when it is known.
                threading.Thread(target=self._look, args=(key, looking), name="aegisagent-names", daemon=True).start()
                self._under_way[key] = looking
            return looking

    def _look(self, key: _Key, looking: concurrent.futures.Future[list[str]]) -> None:
        found, failure = list[str](), None
        try:
            found = [_numeric(address) for *_, address in socket.getaddrinfo(*key, type=socket.SOCK_STREAM)]
        except Exception as error:  # also of a name that cannot be encoded
            failure = error
        with self._lock:
            del self._under_way[key]
        if failure is None:
            looking.set_result(found)
        else:
            looking.set_exception(failure)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _numeric(address: Any) -> str:
    """With the interface, where the address has one."""
    return socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0]
