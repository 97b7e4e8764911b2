from __future__ import annotations

import pytest

from tightpack.benchmarking.sse import EventParser

STREAM = (
    b': comment\ndata: {"a":\ndata: 1}\n\n'
    b"event: x\nid: 4\ndata:two\n\n\n\n"
    b"data: \xc3\xa9\r\n\r\n"
    b"data: [DONE]\n\n"
)
EVENTS = [b'{"a":\n1}', b"two", "é".encode(), b"[DONE]"]


@pytest.mark.parametrize("size", [1, 2, 7, len(STREAM)])
def test_events_whatever_the_pieces_they_come_in(size: int) -> None:
    parser = EventParser()
    pieces = [STREAM[i : i + size] for i in range(0, len(STREAM), size)]
    assert [event for piece in pieces for event in parser.push(piece)] == EVENTS


def test_an_event_counts_when_it_is_complete() -> None:
    parser = EventParser()
    assert parser.push(b"data: 1\n") == []
    assert parser.push(b"\n") == [b"1"]
