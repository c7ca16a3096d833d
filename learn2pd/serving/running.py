"""The process that listens: uvicorn with a socket of our own and a limit on how slowly a client may speak."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from learn2pd.errors import UserError
from learn2pd.serving.app import Server

LOOPBACK = ("127.0.0.1", "::1", "localhost")
BACKLOG = 4096  # connections that may wait to be accepted
LATE_S = 0.5  # a timer that comes so late says that the server is busy
GRACE_S = 30  # seconds for requests that are on their way when the server is stopped


def listen(host: str, port: int) -> socket.socket:
    """Open the socket of a server.

    Args:
        host: The address of the interface.
        port: The port; 0 takes a free one.

    Returns:
        The socket, which listens.

    Raises:
        UserError: The address is none of this machine's, or the port is taken.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no name of a host"
        raise UserError(f"host={host!r}, port={port}: cannot listen there ({reason}): give another one") from error


def address_of(listener: socket.socket) -> str:
    """Return the address of a server as a client writes it."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(server: Server, listener: socket.socket) -> None:
    """Answer requests until the process is told to stop.

    Args:
        server: The server.
        listener: From `listen`.
    """
    with contextlib.suppress(KeyboardInterrupt):  # this is how a server ends
        uvicorn_of(server).run(sockets=[listener])


def uvicorn_of(server: Server) -> uvicorn.Server:
    """Return uvicorn's server for ours."""
    patience_s = server.limits.patience_s

    class Patient(HeadLimit):
        """Has the patience of this server."""

        head_s = patience_s

    return uvicorn.Server(
        uvicorn.Config(
            server.app,
            http=Patient,
            ws="none",
            log_level="warning",
            access_log=False,
            backlog=BACKLOG,
            timeout_graceful_shutdown=GRACE_S,
        )
    )


class HeadLimit(H11Protocol):
    """Closes a connection on which the head of a request, once begun, does not arrive in time.

    Attributes:
        head_s: The seconds in which it must have arrived.
    """

    head_s: float = 20.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:  # the head is complete
            self._stop_waiting()
        elif self._deadline is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._deadline = self.loop.call_later(self.head_s, self._hang_up)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _hang_up(self) -> None:
        assert self._deadline is not None
        if self.loop.time() - self._deadline.when() > LATE_S:
            self._wait()  # the server was busy and may not have read what the client sent in time
        else:
            self.transport.close()
