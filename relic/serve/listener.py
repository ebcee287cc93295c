"""The port of a server or of a router. Loads no torch."""

import errno
import socket

SEND_BUFFER = 1 << 16  # bytes: pictures that lie in a socket's buffer can no longer be dropped


def bind(host: str, port: int) -> socket.socket:
    """The listening socket, or one sentence about why there is none. Port 0 takes a free one."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise ValueError(f"host is {host!r}, which has no address; give one of this machine") from error
    listener = socket.socket(family, kind, protocol)  # asyncio sends at once (TCP_NODELAY) only where TCP is named
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    try:
        listener.bind(place)
        listener.listen()
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            said = f"port {port} on {host} is in use; choose another by --port, or 0 for a free one"
        else:
            said = f"{host}:{port} cannot be taken ({error.strerror}); choose another --host or --port"
        raise ValueError(said) from error
    return listener


def address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
