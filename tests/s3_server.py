"""An S3 server on this machine for tests: moto's, one request at a time, so that its conditional puts are one step."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from typing import Any


def options_of(endpoint: str) -> dict[str, Any]:
    """s3fs's options for the server."""
    return {
        "key": "test",
        "secret": "test",
        "client_kwargs": {"endpoint_url": endpoint, "region_name": "eu-west-1"},
    }


def environment_of(endpoint: str) -> dict[str, str]:
    """The variable by which fsspec in another process finds the server."""
    return {"FSSPEC_S3": json.dumps(options_of(endpoint))}


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """The endpoint's URL, while the server runs."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log_request(self, *_: Any, **__: Any) -> None:
            pass

    moto, one_at_a_time = DomainDispatcherApplication(create_backend_app), threading.Lock()

    def application(environ: Any, start_response: Any) -> Any:
        with one_at_a_time:
            return list(moto(environ, start_response))

    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
