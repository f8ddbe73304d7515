"""The sink's own process: `python -m tests.bench.sink_server --host 127.0.0.2` takes every mail and only counts it.

It competes for the processor with what is measured, so it does as little as SMTP allows: replies to all that came in
one piece leave in one piece, content is searched for its end and not copied, BDAT (RFC 3030) is counted off. There is
no STARTTLS. It prints `listening <host> <SMTP port> <control port>`. The control port takes lines:

    count        how many mails were taken, each recipient of a mail counted
    stats        one line of JSON: mails; connections now, at most at once, ever opened; mails by second of Unix time
    reach <n>    the Unix time when that many had been taken, as soon as they have
"""

import argparse
import asyncio
import json
import math
import signal
import time
from collections import Counter
from contextlib import suppress
from typing import cast

import uvloop

MAX_LINE_OCTETS = 4096
END_OF_DATA = b"\r\n.\r\n"
GREETING = b"220 sink.test ESMTP\r\n"
EXTENSIONS = (
    b"250-sink.test\r\n250-PIPELINING\r\n250-SIZE 52428800\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n"
    b"250-ENHANCEDSTATUSCODES\r\n250 CHUNKING\r\n"
)
OK = b"250 2.0.0 ok\r\n"
TAKEN = b"250 2.0.0 taken\r\n"
GO_AHEAD = b"354 go ahead\r\n"
GOODBYE = b"221 2.0.0 bye\r\n"
OUT_OF_ORDER = b"503 5.5.1 bad sequence of commands\r\n"
NO_RECIPIENTS = b"554 5.5.1 no valid recipients\r\n"
UNKNOWN = b"502 5.5.1 what?\r\n"
BAD_SYNTAX = b"501 5.5.4 bad syntax\r\n"


class Tally:
    """What all sessions of this sink have taken."""

    def __init__(self) -> None:
        self.mails = 0
        self.connections = 0
        self.connections_max = 0
        self.connections_opened = 0
        self.per_second: Counter[int] = Counter()
        self._waiting: list[tuple[int, asyncio.Future[float]]] = []
        self._next_wanted: float = math.inf

    def opened(self) -> None:
        self.connections += 1
        self.connections_opened += 1
        self.connections_max = max(self.connections_max, self.connections)

    def took(self, count: int) -> None:
        now = time.time()
        self.mails += count
        self.per_second[int(now)] += count
        if self.mails >= self._next_wanted:
            self._tell(now)

    def reached(self, count: int) -> asyncio.Future[float]:
        """Done with the Unix time once this many mails have been taken."""
        future: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._waiting.append((count, future))
        self._tell(time.time())
        return future

    def _tell(self, now: float) -> None:
        still_waiting = []
        for count, future in self._waiting:
            if future.done():
                continue
            if self.mails >= count:
                future.set_result(now)
            else:
                still_waiting.append((count, future))
        self._waiting = still_waiting
        self._next_wanted = min((count for count, _ in still_waiting), default=math.inf)

    def as_json(self) -> str:
        names = ("mails", "connections", "connections_max", "connections_opened", "per_second")
        return json.dumps({name: getattr(self, name) for name in names})


class Session(asyncio.Protocol):
    """One SMTP connection. A mail is counted when the last octet of its content is here."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._transport: asyncio.Transport
        self._has_sender = False
        self._recipients = 0
        # The unfinished command line.
        self._rest = b""
        self._in_data = False
        # The last octets of content before this piece, as the end of data may lie across two.
        self._tail = b""
        # Octets of a BDAT chunk that are still to come, its refusal if any, whether it ends the mail.
        self._chunk_octets = 0
        self._chunk_refusal = b""
        self._chunk_is_last = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._tally.opened()
        self._transport.write(GREETING)

    def connection_lost(self, exc: Exception | None) -> None:
        self._tally.connections -= 1

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data, self._rest = self._rest + data, b""
        position, replies = 0, b""
        while position < len(data):
            if self._in_data:
                position, reply = self._read_content(data, position)
            elif self._chunk_octets:
                position, reply = self._read_chunk(data, position)
            else:
                end = data.find(b"\n", position) + 1
                if not end:
                    self._keep_rest(data, position)
                    break
                reply = self._command(data[position:end])
                position = end
            replies += reply
        if replies:
            self._transport.write(replies)
            if replies.endswith(GOODBYE):
                self._transport.close()

    def _keep_rest(self, data: bytes, position: int) -> None:
        self._rest = data[position:]
        if len(self._rest) > MAX_LINE_OCTETS:
            self._transport.abort()

    def _read_content(self, data: bytes, position: int) -> tuple[int, bytes]:
        """Where the content ends, and the reply; the end of `data` and nothing when it goes on."""
        seam = self._tail + data[position : position + 4]
        if (found := seam.find(END_OF_DATA)) >= 0:
            end = position + found + 5 - len(self._tail)
        elif (found := data.find(END_OF_DATA, position)) >= 0:
            end = found + 5
        else:
            self._tail = data[-4:] if len(data) - position >= 4 else seam[-4:]
            return len(data), b""
        self._in_data = False
        return end, self._take()

    def _read_chunk(self, data: bytes, position: int) -> tuple[int, bytes]:
        used = min(self._chunk_octets, len(data) - position)
        self._chunk_octets -= used
        return position + used, b"" if self._chunk_octets else self._end_of_chunk()

    def _end_of_chunk(self) -> bytes:
        if self._chunk_refusal:
            return self._chunk_refusal
        return self._take() if self._chunk_is_last else OK

    def _take(self) -> bytes:
        self._tally.took(self._recipients)
        self._has_sender, self._recipients = False, 0
        return TAKEN

    def _command(self, line: bytes) -> bytes:
        match line[:4].upper():
            case b"MAIL":
                if self._has_sender:
                    return OUT_OF_ORDER
                self._has_sender = True
                return OK
            case b"RCPT":
                if not self._has_sender:
                    return OUT_OF_ORDER
                self._recipients += 1
                return OK
            case b"DATA":
                if not self._recipients:
                    return NO_RECIPIENTS
                # The line end of the command counts: content may consist of the final dot alone.
                self._in_data, self._tail = True, b"\r\n"
                return GO_AHEAD
            case b"BDAT":
                return self._on_bdat(line)
            case b"EHLO" | b"HELO":
                self._has_sender, self._recipients = False, 0
                return EXTENSIONS if line[:1] in b"Ee" else OK
            case b"RSET":
                self._has_sender, self._recipients = False, 0
                return OK
            case b"NOOP":
                return OK
            case b"QUIT":
                return GOODBYE
        return UNKNOWN

    def _on_bdat(self, line: bytes) -> bytes:
        words = line.upper().split()
        if len(words) < 2 or not words[1].isdigit():
            return BAD_SYNTAX
        self._chunk_octets = int(words[1])
        self._chunk_is_last = words[2:] == [b"LAST"]
        self._chunk_refusal = b"" if self._recipients else NO_RECIPIENTS
        return b"" if self._chunk_octets else self._end_of_chunk()


async def _control(tally: Tally, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    # Questions may be open when the process ends.
    with suppress(asyncio.CancelledError):
        while line := (await reader.readline()).decode():
            match line.split():
                case ["count"]:
                    answer = str(tally.mails)
                case ["stats"]:
                    answer = tally.as_json()
                case ["reach", count]:
                    answer = repr(await tally.reached(int(count)))
                case _:
                    answer = "?"
            writer.write(answer.encode() + b"\n")
        writer.close()


async def serve(host: str, port: int) -> None:
    """Run until SIGTERM or SIGINT."""
    tally = Tally()
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    smtp = await loop.create_server(lambda: Session(tally), host, port, backlog=1024)
    control = await asyncio.start_server(lambda reader, writer: _control(tally, reader, writer), host, 0)
    smtp_port, control_port = (server.sockets[0].getsockname()[1] for server in (smtp, control))
    print(f"listening {host} {smtp_port} {control_port}", flush=True)
    await stop.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description="An SMTP sink that counts.")
    parser.add_argument("--host", default="127.0.0.2")
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    uvloop.run(serve(options.host, options.port))


if __name__ == "__main__":
    main()
