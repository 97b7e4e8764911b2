"""Recorded arrivals and lengths, from a CSV file in the columns of the public Azure LLM inference traces."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from tightpack.benchmarking.workload import RequestShape

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def read_trace(path: Path, count: int, time_scale: float = 1.0) -> list[RequestShape]:
    """The first `count` requests of a trace, the first of them at 0 s.

    The file has a header with TIMESTAMP (ISO 8601 date and time, any number of decimals, or plain seconds),
    ContextTokens and GeneratedTokens (1 or more); further columns are ignored. Gaps between arrivals are
    multiplied by `time_scale`: 2 halves the load.
    Fewer requests than `count` are no error. Raises FileNotFoundError, and ValueError naming file and line.
    """
    if count < 1:
        raise ValueError(f"a workload needs at least 1 request, got {count}")
    if not (math.isfinite(time_scale) and time_scale > 0):
        raise ValueError(f"the time scale must be above 0, got {time_scale}")
    if not path.is_file():
        raise FileNotFoundError(f"no trace file at {path}")
    requests: list[RequestShape] = []
    first: float | None = None
    for line, seconds, input_len, output_len in _rows(path):
        first = seconds if first is None else first
        try:
            requests.append(RequestShape((seconds - first) * time_scale, input_len, output_len))
        except ValueError as error:
            raise ValueError(f"{path}, line {line}: {error}") from error
        if len(requests) == count:
            break
    if not requests:
        raise ValueError(f"{path} holds no requests, only a header")
    return requests


def _rows(path: Path) -> Iterator[tuple[int, float, int, int]]:
    """(line number, seconds, prompt tokens, output tokens) of each row."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise ValueError(f"{path} lacks the column {missing[0]}; a trace has {', '.join(COLUMNS)}")
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                yield (
                    reader.line_num,
                    _seconds(row["TIMESTAMP"], where),
                    _tokens(row, "ContextTokens", where),
                    _tokens(row, "GeneratedTokens", where),
                )
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not a text file: {error}") from error


def _seconds(text: str | None, where: str) -> float:
    value = (text or "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            # Decimals beyond microseconds are cut off.
            moment = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(
                f"{where}: TIMESTAMP is {value!r}, not a time such as 2023-11-16 18:15:46.68"
            ) from None
        # A time without a zone is taken as UTC, not as in the zone of this machine.
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if not math.isfinite(seconds):
        raise ValueError(f"{where}: TIMESTAMP is {value!r}, not a time such as 2023-11-16 18:15:46.68")
    return seconds


def _tokens(row: dict[str, str], column: str, where: str) -> int:
    value = row[column]
    try:
        return int(value)
    except (TypeError, ValueError):
        raise ValueError(f"{where}: {column} is {value!r}, not a number of tokens") from None
