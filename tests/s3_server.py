"""A real S3 server on loopback (moto's), and a proxy before it that fails as networks do."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import fsspec

REFUSED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


@contextmanager
def open_s3(*buckets: str) -> Iterator[tuple[str, int]]:
    """The server's address, which the environment names as well, with these buckets."""
    import boto3
    from moto.server import ThreadedMotoServer

    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    with environment(
        AWS_ENDPOINT_URL=f"http://{host}:{port}",
        AWS_ACCESS_KEY_ID="test",
        AWS_SECRET_ACCESS_KEY="test",
        AWS_DEFAULT_REGION="us-east-1",
        AWS_MAX_ATTEMPTS="1",  # botocore's own: what is tested is ours
    ):
        client = boto3.client("s3")
        for bucket in buckets:
            client.create_bucket(Bucket=bucket)
        client.close()
        yield host, port
        fsspec.get_filesystem_class("s3").clear_instance_cache()
    running.stop()


@contextmanager
def environment(**settings: str) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})


class Proxy:
    """Forwards connections to ``target``, but for those that it is told to spoil."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.cuts = 0
        """How many connections are cut after ``cut_after`` more bytes, from the next request on."""
        self.cut_after = 0
        self.answers: list[tuple[int, bytes]] = []
        """(status, body) given to the next requests, instead of the server's own."""
        self.spoiled = 0
        self.methods: tuple[bytes, ...] = (b"PUT", b"POST")
        """Only requests of these are spoiled."""
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError), client, socket.create_connection(self._target) as server:
            threading.Thread(target=_pump, args=(server, client), daemon=True).start()
            left: int | None = None
            while data := client.recv(1 << 16):
                if data.split(b" ", 1)[0] in self.methods and left is None:
                    if self.answers:
                        self._answer(client)
                        break
                    if self.cuts > 0:
                        self.cuts -= 1
                        left = self.cut_after
                server.sendall(data if left is None else data[:left])
                if left is not None:
                    left -= len(data)
                    if left <= 0:
                        self.spoiled += 1
                        break
            for end in (client, server):
                end.shutdown(socket.SHUT_RDWR)

    def _answer(self, client: socket.socket) -> None:
        status, body = self.answers.pop(0)
        self.spoiled += 1
        head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        client.sendall(head.encode() + body)
        # What has not been read when a connection closes makes the kernel throw the answer away.
        client.settimeout(0.2)
        with suppress(OSError):
            while client.recv(1 << 16):
                pass


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)


@contextmanager
def open_proxy(target: tuple[str, int]) -> Iterator[Proxy]:
    """A proxy that the environment names as S3's endpoint for the time of the block."""
    proxy = Proxy(target)
    s3: Any = fsspec.get_filesystem_class("s3")
    s3.clear_instance_cache()
    with environment(AWS_ENDPOINT_URL=proxy.url):
        yield proxy
        s3.clear_instance_cache()
    proxy.close()
