"""The metrics port: plain HTTP with one path, from a thread of its own, so that a scrape is answered whatever the loop does."""

import contextlib
import logging
import socket
import socketserver
import threading
from types import TracebackType
from typing import Any, Self

from prometheus_client import CollectorRegistry, MetricsHandler

from yikatong.core.errors import ConfigError

log = logging.getLogger(__name__)


class MetricsServer:
    """Serves /metrics. Port 0 takes a free one; `port` is the one that was bound. Raises ConfigError (metrics_port) when the
    address cannot be had."""

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        handler = type("Handler", (_Handler,), {"registry": registry})
        try:
            if not 0 <= port <= 65_535:
                raise OverflowError("a port is 0 to 65535")  # getaddrinfo would take what is left of 16 bits
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, _, _, _, address = found[0]
            self._server = _Server(family, address, handler)
        except (OSError, OverflowError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise ConfigError("metrics_port", f"cannot listen on {_address(host, port)}: {reason}") from error
        self.host = host
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="metrics", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where the metrics are."""
        return f"http://{_address(self.host, self.port)}/metrics"

    def close(self) -> None:
        """Stop listening; the port is free afterwards. Closing again does nothing."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _Server(socketserver.ThreadingTCPServer):
    # Not http.server's: that one asks the name service who it is before it listens, and may wait for long.
    allow_reuse_address = True  # a restart need not wait for the kernel to forget old connections
    daemon_threads = True

    def __init__(self, family: int, address: Any, handler: type[MetricsHandler]) -> None:
        self.address_family = family
        super().__init__(address, handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.warning("a scrape was not answered", exc_info=True)


class _Handler(MetricsHandler):
    timeout = 10.0  # a client that says nothing keeps its thread no longer than this

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(404, "The metrics are at /metrics")
            return
        with contextlib.suppress(ConnectionError):  # who asked has gone
            super().do_GET()
