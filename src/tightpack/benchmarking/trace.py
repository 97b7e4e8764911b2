"""Recorded arrivals and lengths, from a CSV file in the columns of the public Azure LLM inference traces."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from tightpack.benchmarking.workload import RequestShape

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def read_trace(
    path: Path, count: int, time_scale: float = 1.0, *, skip: int = 0, length_scale: float = 1.0
) -> list[RequestShape]:
    """`count` requests of a trace after the first `skip`, the first of them at 0 s.

    The file has a header with TIMESTAMP (ISO 8601 date and time, any number of decimals, or plain seconds),
    ContextTokens and GeneratedTokens (1 or more); further columns are ignored. Gaps between arrivals are
    multiplied by `time_scale`: 2 halves the load. Prompt and output lengths are multiplied by `length_scale`
    and rounded, to 1 token at the least.
    Fewer requests than `count` are no error. Raises FileNotFoundError, and ValueError naming file and line.
    """
    if count < 1:
        raise ValueError(f"a workload needs at least 1 request, got {count}")
    if skip < 0:
        raise ValueError(f"a trace can skip 0 or more requests, got {skip}")
    for name, scale in (("time", time_scale), ("length", length_scale)):
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"the {name} scale must be above 0, got {scale}")
    if not path.is_file():
        raise FileNotFoundError(f"no trace file at {path}")
    requests: list[RequestShape] = []
    first: float | None = None
    for line, seconds, *lengths in islice(_rows(path), skip, None):
        first = seconds if first is None else first
        # A length of 0 in the file stays 0 and is refused; only rounding is kept from giving it.
        input_len, output_len = (max(min(n, 1), round(n * length_scale)) for n in lengths)
        try:
            requests.append(RequestShape((seconds - first) * time_scale, input_len, output_len))
        except ValueError as error:
            raise ValueError(f"{path}, line {line}: {error}") from error
        if len(requests) == count:
            break
    if not requests:
        beyond = f" beyond the {skip} skipped" if skip else ", only a header"
        raise ValueError(f"{path} holds no requests{beyond}")
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
