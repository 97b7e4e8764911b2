from __future__ import annotations

import json

import pytest

from tightpack.server.event_stream import ChunkWriter


@pytest.mark.parametrize(
    "text", ["\x85", "\u2028", "\u2029", "\x0b", "\x1c", "\n", "a\u2028\u2028b", "é 日本"]
)
def test_an_event_is_one_line_however_its_text_breaks_lines(text):
    event = ChunkWriter({"id": "x"}).chunk({"text": text}).decode()
    line, end = event.splitlines()
    assert end == ""
    assert json.loads(line.removeprefix("data: ")) == {"id": "x", "text": text}


def test_text_beyond_ascii_stays_readable():
    assert "é 日本" in ChunkWriter({}).chunk({"text": "é 日本"}).decode()
