"""A TCP proxy that a test takes away and gives back: the outage of a server that others still need."""

import asyncio
from types import TracebackType
from typing import Self


class Proxy:
    """Forwards connections on a loopback port of its own; `closed` drops them, `silent` takes them and says nothing.

    `host` may be the path of a Unix socket. With `mode` set to `cut`, a connection ends with the next answer, which is
    not handed on; the mode is `open` then.
    """

    def __init__(self, host: str, port: int = 0) -> None:
        self._host, self._port = host, port
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.mode = "open"
        self.connections = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        self.change("closed")

    def change(self, mode: str) -> None:
        """Change the mode; connections that stand are cut."""
        self.mode = mode
        for writer in self._writers:
            writer.close()
        self._writers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        if self.mode == "closed":
            writer.close()
        elif self.mode == "open":
            if self._host.startswith("/"):
                there, back = await asyncio.open_unix_connection(self._host)
            else:
                there, back = await asyncio.open_connection(self._host, self._port)
            self._writers.add(back)
            for source, sink in ((reader, back), (there, writer)):
                task = asyncio.create_task(self._pump(source, sink, answers=sink is writer))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, answers: bool) -> None:
        try:
            while data := await source.read(65_536):
                if answers and self.mode == "cut":
                    self.mode = "open"
                    break
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            sink.close()
