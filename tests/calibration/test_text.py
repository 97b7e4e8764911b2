from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tightpack.calibration.text import TextError, TokenText, read_text
from tightpack.checkpoints.open import open_checkpoint
from tightpack.checkpoints.tokenizer import Tokenizer


@pytest.fixture
def tokenizer(tiny_model: Callable[[str], Path]) -> Tokenizer:
    return open_checkpoint(str(tiny_model("llama"))).tokenizer


def test_sequences_are_consecutive_and_disjoint() -> None:
    text = TokenText(np.arange(100), (), "text")
    assert text.sequences(30).tolist() == [list(range(30)), list(range(30, 60)), list(range(60, 90))]
    assert text.sequences(30, skip=1, count=1).tolist() == [list(range(30, 60))]
    assert text.sequences(30, skip=-1).tolist() == [list(range(60, 90))]


def test_a_prefix_begins_each_and_counts() -> None:
    text = TokenText(np.arange(10, 20), (1,), "text")
    assert text.sequences(5).tolist() == [[1, 10, 11, 12, 13], [1, 14, 15, 16, 17]]


@pytest.mark.parametrize("asked", [{"count": 4}, {"skip": 3}, {"skip": -4}, {"skip": 2, "count": 2}])
def test_too_short_a_text_says_how_long_it_is(asked: dict[str, int]) -> None:
    with pytest.raises(TextError, match=r"corpus: the text has 100 tokens, 3 sequences of 30"):
        TokenText(np.arange(100), (), "corpus").sequences(30, **asked)


def test_plain_and_json_lines(tmp_path: Path, tokenizer: Tokenizer) -> None:
    plain, lines = tmp_path / "a.txt", tmp_path / "a.jsonl"
    plain.write_text("w5 w6\n\nw7")
    lines.write_text(json.dumps({"text": "w5 w6"}) + "\n\n" + json.dumps({"text": "w7", "id": 3}) + "\n")
    assert read_text(plain, tokenizer).ids.tolist() == [5, 6, 7]
    assert read_text(lines, tokenizer).ids.tolist() == [5, 6, 7]


@pytest.mark.parametrize(
    ("content", "message"),
    [('{"text": 3}', 'line 1 has no string field "text"'), ("{", "line 1 is not JSON")],
)
def test_broken_json_lines(content: str, message: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text(content)
    with pytest.raises(TextError, match=message):
        read_text(path, tokenizer)


def test_missing_and_binary_files(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(TextError, match="no such text file"):
        read_text(tmp_path / "none.txt", tokenizer)
    (tmp_path / "image").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TextError, match="not UTF-8"):
        read_text(tmp_path / "image", tokenizer)
