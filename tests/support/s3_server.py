"""A local S3 server (moto) that fails on demand."""

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable

import pytest

ERROR = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{}</Code><Message>{}</Message></Error>'


class S3Server:
    """A context manager with one bucket; the faults are attributes that can be set at any time.

    Attributes:
        requests: number of requests by method.
        fail: number of following requests for objects to answer with status 500.
        cut: number of following responses with an object to end in the middle, whatever their Content-Length says.
        slow: number of following requests for objects to answer after ``delay`` seconds.
        expired: whether to refuse all requests as S3 does when a session has expired.
    """

    def __init__(self, bucket: str = "bucket") -> None:
        pytest.importorskip("s3fs", reason="needs s3fs: pip install 'spectralforge[remote]'")
        pytest.importorskip("moto", reason="needs a local S3 server: pip install 'moto[s3]' flask flask-cors")
        self.bucket, self.requests = bucket, Counter[str]()
        self.fail = self.cut = self.slow = 0
        self.delay, self.expired = 1.0, False
        self._lock = threading.Lock()

    def __enter__(self) -> "S3Server":
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            def log(self, *_: object) -> None:
                pass

        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=Quiet)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        import boto3

        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment.items():
                patch.setenv(name, value)
            boto3.client("s3").create_bucket(Bucket=self.bucket)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """Variables that lead s3fs and boto3 here."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "id",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
        }

    def _answer(self, environ: dict, start: Callable) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        is_object = path.count("/") > 1
        with self._lock:
            self.requests[method] += 1
        if self.expired:
            return _refuse(start, "403 Forbidden", "ExpiredToken", "The provided token has expired.")
        if is_object and self._take("fail"):
            return _refuse(start, "500 Internal Server Error", "InternalError", "We encountered an internal error.")
        if is_object and self._take("slow"):
            time.sleep(self.delay)
        if is_object and method == "GET" and self._take("cut"):
            body = b"".join(self._app(environ, start))
            return [body[: len(body) // 2]]
        return self._app(environ, start)

    def _take(self, fault: str) -> bool:
        with self._lock:
            left = getattr(self, fault)
            setattr(self, fault, max(left - 1, 0))
            return left > 0


def _refuse(start: Callable, status: str, code: str, message: str) -> list[bytes]:
    body = ERROR.format(code, message).encode()
    start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body]
