"""Server-sent events (WHATWG HTML, section 9.2) out of the bytes of a response."""

from __future__ import annotations


class EventParser:
    """Give it bytes as they come; it gives back the data of the events that they complete.

    Only `data` is kept, which is all that OpenAI's API uses. The joined data of an event may span lines.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def push(self, received: bytes) -> list[bytes]:
        events = []
        *lines, self._rest = (self._rest + received).split(b"\n")
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                events.append(b"\n".join(self._data))
                self._data = []
        return events
