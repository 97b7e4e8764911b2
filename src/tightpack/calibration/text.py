"""Text to calibrate on and to evaluate with: a file cut in sequences of equal length."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tightpack.checkpoints.tokenizer import Tokenizer

IntArray = NDArray[np.int64]


class TextError(ValueError):
    """A text that cannot be used; the message names the file and, for too short a one, its tokens."""


@dataclass(frozen=True, slots=True)
class TokenText:
    """A text's token ids.

    ids: int64 [tokens], without special tokens.
    prefix: what the tokenizer puts before every text (a beginning-of-text token, or nothing); it begins each
        sequence and counts in its length.
    source: for messages.
    """

    ids: IntArray
    prefix: tuple[int, ...]
    source: str

    def num_sequences(self, length: int) -> int:
        """Whole sequences of `length` tokens that it gives."""
        return len(self.ids) // self._step(length)

    def sequences(self, length: int, *, skip: int = 0, count: int | None = None) -> IntArray:
        """Consecutive sequences, int64 [count, length].

        skip: sequences to leave out at the start; a negative number keeps only that many, at the end.
        count: None for all there are. Raises TextError, with the tokens there are, where the text is shorter.
        """
        step = self._step(length)
        there = self.num_sequences(length)
        first = skip if skip >= 0 else there + skip
        wanted = max(1, there - first if count is None else count)
        if first < 0 or first + wanted > there:
            asked = f"{wanted} x {length}" if skip == 0 else f"{wanted} x {length} after skipping {skip}"
            if skip < 0:
                asked = f"the last {-skip} x {length}"
            raise TextError(
                f"{self.source}: the text has {len(self.ids):,} tokens, {there} sequences of {length}, and "
                f"{asked} were asked for; give a longer text, or ask for fewer or shorter sequences"
            )
        rows = self.ids[first * step : (first + wanted) * step].reshape(wanted, step)
        head = np.broadcast_to(np.asarray(self.prefix, dtype=np.int64), (wanted, len(self.prefix)))
        return np.concatenate([head, rows], axis=1)

    def _step(self, length: int) -> int:
        if length < len(self.prefix) + 2:
            raise ValueError(f"sequence_length must be at least {len(self.prefix) + 2}, got {length}")
        return length - len(self.prefix)


def read_text(path: Path, tokenizer: Tokenizer) -> TokenText:
    """A UTF-8 text file, or JSON Lines (`.jsonl`) whose "text" fields are joined by an empty line.

    Raises TextError naming the file, and the line where there is one.
    """
    try:
        raw = path.expanduser().read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TextError(f"{path}: not UTF-8 text: {error}") from error
    except (FileNotFoundError, IsADirectoryError) as error:
        raise TextError(f"{path}: no such text file") from error
    text = "\n\n".join(_documents(path, raw)) if path.suffix.lower() == ".jsonl" else raw
    ids = np.asarray(tokenizer.encode(text, add_special_tokens=False), dtype=np.int64)
    return TokenText(ids, text_prefix(tokenizer), str(path))


def text_prefix(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The beginning-of-text token where the tokenizer puts one before a text, else nothing."""
    begins = tokenizer.encode("")[:1]
    return tuple(begins) if begins and begins[0] == tokenizer.bos_token_id else ()


def _documents(path: Path, raw: str) -> list[str]:
    documents = []
    for number, line in enumerate(raw.splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise TextError(f"{path}: line {number} is not JSON: {error}") from error
        if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
            raise TextError(f'{path}: line {number} has no string field "text"')
        documents.append(entry["text"])
    return documents
