"""No test, and nothing that a test runs in its process or a fork of it, reaches beyond this machine."""

from __future__ import annotations

import ipaddress
import socket
import sys
from typing import Any

attempts: list[str] = []
"""Where something of this process wanted to go; also where what it caught kept it from failing."""

_EVENTS = {"socket.connect": 1, "socket.sendto": 1, "socket.getaddrinfo": 0, "socket.gethostbyname": 0}
"""Audit event of Python's sockets -> where in its arguments the address is."""


def refuse() -> None:
    """Refuses, from now on and for good, every address that is not of this machine, and every name but its own."""
    own = {"", "localhost", socket.gethostname()}

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _EVENTS:
            return
        address = arguments[_EVENTS[event]]
        host = address[0] if isinstance(address, tuple) else address
        if event.endswith(("connect", "sendto")) and not isinstance(address, tuple):
            return  # the name of a Unix socket
        if host is not None and not _is_here(host.decode() if isinstance(host, bytes) else str(host), own):
            attempts.append(f"{event} {host}")
            raise ConnectionRefusedError(f"the tests have no network: {event} {host}")

    sys.addaudithook(watch)


def _is_here(host: str, own: set[str]) -> bool:
    if host in own:
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified
