"""A real S3 server (moto) on loopback that can be told to refuse requests."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

KEYS = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_EC2_METADATA_DISABLED": "true"}
# What S3 says when it refuses: the status line, the code and the text of its error document.
REFUSALS = {
    503: ("503 Slow Down", "SlowDown", "Please reduce your request rate."),
    500: ("500 Internal Server Error", "InternalError", "We encountered an internal error."),
    403: ("403 Forbidden", "AccessDenied", "Access Denied"),
}


@dataclass
class Store:
    """The store, and which requests it refuses: every so many of those with some methods."""

    query: str = ""  # of URIs that lead to it
    methods: tuple[str, ...] = ()
    status: int = 503
    every: int = 1
    refused: int = 0
    _asked: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def refuse(self, methods: tuple[str, ...], status: int, every: int) -> None:
        self.methods, self.status, self.every, self.refused = methods, status, every, 0

    def relent(self) -> None:
        self.methods = ()

    def _refuses(self, method: str) -> bool:
        with self._lock:
            self._asked += method in self.methods
            refuses = method in self.methods and self._asked % self.every == 0
            self.refused += refuses
        return refuses

    def application(self) -> Any:
        """The server's WSGI application behind a door that is sometimes shut."""
        inside = DomainDispatcherApplication(create_backend_app)

        def answer(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
            if not self._refuses(environ["REQUEST_METHOD"]):
                return inside(environ, start)
            chunked = environ.get("HTTP_TRANSFER_ENCODING") == "chunked"
            environ["wsgi.input"].read(-1 if chunked else int(environ.get("CONTENT_LENGTH") or 0))
            line, code, text = REFUSALS[self.status]
            said = (
                f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{text}</Message></Error>".encode()
            )
            start(line, [("Content-Type", "application/xml"), ("Content-Length", str(len(said)))])
            return [] if environ["REQUEST_METHOD"] == "HEAD" else [said]

        return answer


class _Quiet(WSGIRequestHandler):
    def log(self, *_: object) -> None:
        pass


@contextmanager
def object_store() -> Iterator[Store]:
    """An empty store; it takes any keys, such as KEYS. One at a time: its objects are this process's."""
    store = Store()
    server = make_server("127.0.0.1", 0, store.application(), threaded=True, request_handler=_Quiet)
    store.query = (
        f"scheme=http&endpoint_override=127.0.0.1:{server.server_port}"
        "&region=us-east-1&allow_bucket_creation=true"
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    reset = f"http://127.0.0.1:{server.server_port}/moto-api/reset"
    urllib.request.urlopen(urllib.request.Request(reset, method="POST")).close()
    try:
        yield store
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
