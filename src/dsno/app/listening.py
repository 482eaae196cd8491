"""The address the page is served at."""

from __future__ import annotations

import errno
import socket

from dsno.support.errors import InputError


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections at a host's port; 0 is any free one.

    Raises:
        InputError: if the port is no port or in use, or the host is not one of this machine.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"A port is a number from 0 to 65535, not {port}; give another to --port.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InputError(f"There is no host {host} ({error.strerror}); leave --host out.") from None
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen()
    except OSError as error:
        found.close()
        if error.errno == errno.EADDRINUSE:
            raise InputError(
                f"Port {port} of {host} is in use; give another to --port, or 0 for any free one."
            ) from None
        reason = error.strerror or error
        raise InputError(f"Port {port} of {host} cannot be opened ({reason}).") from None
    return found


def url(listener: socket.socket) -> str:
    """Where a browser on this machine finds what listens there."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
