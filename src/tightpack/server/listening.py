"""The server's socket. Of the standard library alone, since it comes before everything slow."""

from __future__ import annotations

import errno
import socket


def open_socket(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet; port 0 picks a free one.

    Bound before a model is loaded, so that a taken port is known at once, while clients are refused (rather
    than kept waiting) until the server is ready. Raises OSError that says what to do.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, OverflowError) as error:
        raise OSError(f"cannot listen on host {host!r}, port {port}: {error}") from error
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise cannot_listen(host, port, error) from error
    return sock


def cannot_listen(host: str, port: int, error: OSError) -> OSError:
    """The error that says what to do."""
    match error.errno:
        case errno.EADDRNOTAVAIL:
            remedy = "give --host an address of this machine, such as 127.0.0.1, or 0.0.0.0 for all of them"
        case errno.EACCES:
            remedy = "ports below 1024 need privileges; choose another port"
        case _:
            remedy = "choose another port (0 picks a free one)"
    return OSError(f"cannot listen on {host}:{port}: {error.strerror}; {remedy}")


def address_of(sock: socket.socket) -> str:
    """The URL of a bound socket."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
