"""A search server on this machine, in a thread."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import uvicorn

from internvideo.search.collection import Collection
from internvideo.search.server import create_app


class Running:
    """A server of a collection, on a free port or a given one."""

    def __init__(self, collection: Collection, port: int = 0, **settings: Any) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(("127.0.0.1", port))
        self.socket.listen(2048)
        self.port = self.socket.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        app: Any = create_app(collection, **settings)
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="critical", server_header=False))
        self.thread = threading.Thread(target=self.server.run, args=([self.socket],), daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def stop(self) -> None:
        self.server.should_exit = True
        self.server.force_exit = True
        self.thread.join(10)
        self.socket.close()
