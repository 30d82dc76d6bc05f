"""A web server on loopback that gives files, and breaks off as networks do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Web:
    """What the server gives, and how."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)  # by default a file's length and beginning
    statuses: dict[str, int] = field(default_factory=dict)  # answered instead
    types: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    gives_ranges: bool = True
    tells: bool = True  # size and tag
    breaks_after: list[int] = field(default_factory=list)
    """Of the next answers so many bytes come, and then the connection ends."""
    may_break: threading.Event = field(default_factory=threading.Event)
    """Until it is set, such a connection stays open behind these bytes."""
    asked: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, range

    def tag_of(self, path: str) -> str:
        return self.tags.get(path, f'"{hash(self.files[path])}"')


class _Handler(BaseHTTPRequestHandler):
    web: Web

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        web, path = self.web, self.path.partition("?")[0]
        wanted = self.headers.get("Range") or ""
        web.asked.append((self.command, path, wanted))
        status = web.statuses.get(path, 200 if path in web.files else 404)
        if path in web.moved:
            self.send_response(302)
            self.send_header("Location", web.moved[path])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if status != 200:
            self.send_error(status)
            return
        body, first = web.files[path], 0
        if wanted and web.gives_ranges:
            start, _, end = wanted.removeprefix("bytes=").partition("-")
            first, last = int(start), min(int(end or len(body)), len(body) - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(body)}")
            body = body[first : last + 1]
        else:
            self.send_response(200)
        if web.tells:
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", web.tag_of(path))
        self.send_header("Content-Type", web.types.get(path, "application/octet-stream"))
        for name, value in web.headers.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "GET":
            breaks_after = web.breaks_after.pop(0) if web.breaks_after else None
            self.wfile.write(body[:breaks_after])
            if breaks_after is not None:
                web.may_break.wait(60)
            self.close_connection = True


@contextmanager
def open_web(files: dict[str, bytes]) -> Iterator[Web]:
    """A server of these files, by their paths."""
    web = Web(files=dict(files))
    web.may_break.set()
    handler = type("Handler", (_Handler,), {"web": web})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    web.url = f"http://127.0.0.1:{server.server_port}"
    yield web
    server.shutdown()
    server.server_close()
