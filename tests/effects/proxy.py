"""A proxy in front of PostgreSQL's socket that loses one request, a COMMIT unless told otherwise, or the answer to it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

SOCKET = ".s.PGSQL.5432"


class Proxy:
    """`lose`: the next COMMIT before it arrives ("request"), or what the server says to it ("answer"). `then`: called when
    that has happened, before the client hears that its connection is gone."""

    def __init__(self, server: Path, folder: Path) -> None:
        self._server = str(server / SOCKET)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / SOCKET))
        self._listener.listen()
        self.lose: Literal["request", "answer"] | None = None
        self.then: Callable[[], None] = lambda: None
        self.marked = b"COMMIT\x00"
        self.lost = 0
        self._deaf: socket.socket | None = None
        self._answered = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(self._server)
            except OSError:
                client.close()
                continue
            threading.Thread(target=self._requests, args=(client, server), daemon=True).start()

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        answers = threading.Thread(target=self._copy, args=(server, client), daemon=True)
        answers.start()
        with suppress(OSError):
            while data := client.recv(65_536):
                if self.lose is not None and self.marked in data:
                    self._lose(client, server, data)
                    return
                server.sendall(data)
        server.close()

    def _lose(self, client: socket.socket, server: socket.socket, data: bytes) -> None:
        what, self.lose = self.lose, None
        self._deaf = client
        if what == "answer":
            server.sendall(data)
            # Its answer, which `_copy` drops, shows that it is done.
            self._answered.wait(10)
        self.lost += 1
        with suppress(OSError):
            # A close alone is not heard by the server while another thread waits for its answers.
            server.shutdown(socket.SHUT_RDWR)
        self.then()
        server.close()
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)
        client.close()

    def _copy(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(65_536):
                if client is self._deaf:
                    self._answered.set()
                else:
                    client.sendall(data)
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)
