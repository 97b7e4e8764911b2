"""Server-sent events (WHATWG HTML, section 9.2) as OpenAI's API uses them: `data:` lines, then `[DONE]`."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tightpack.server.api_error import ApiError
from tightpack.server.disconnect import ClientGoneError, until_disconnect

logger = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"
# Where line breaks end in the eyes of Unicode, and of clients that split a stream into lines by it. Events
# have no others: JSON escapes what stands below U+0020.
_OTHER_BREAKS = ("\x85", "\u2028", "\u2029")


def to_json(value: Any) -> str:
    """Compact, on one line."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character in _OTHER_BREAKS:
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


class ChunkWriter:
    """Events that share their first fields, which are written once."""

    def __init__(self, head: Mapping[str, Any]) -> None:
        self._head = f"data: {to_json(head)[:-1]}," if head else "data: {"

    def chunk(self, fields: Mapping[str, Any]) -> bytes:
        return f"{self._head}{to_json(fields)[1:]}\n\n".encode()


async def _events(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    """The chunks, then [DONE]. An error on the way is an event of its own, since the status is long sent."""
    yield first
    try:
        async for chunk in rest:
            yield chunk
    except ApiError as error:
        yield ChunkWriter({}).chunk(error.body)
    except Exception:
        logger.exception("a stream failed")
        yield ChunkWriter({}).chunk(ApiError(500, "internal error", code="internal_error").body)
    yield DONE


async def open_event_stream(receive: Receive, chunks: AsyncGenerator[bytes, None]) -> EventStream:
    """Wait for the first chunk, so that whatever fails before it is answered with a status of its own."""

    async def first() -> bytes:
        return await anext(chunks)

    return EventStream(await until_disconnect(receive, first()), chunks)


class EventStream(Response):
    """Sends chunks as they come; closes their source when the client goes away."""

    media_type = "text/event-stream"

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes, None]) -> None:
        # No proxy on the way may collect the events: X-Accel-Buffering is nginx's word for that.
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._first = first
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._rest):
            try:
                await until_disconnect(receive, self._send(send))
            except ClientGoneError:
                logger.debug("the client left its stream")

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for event in _events(self._first, self._rest):
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
