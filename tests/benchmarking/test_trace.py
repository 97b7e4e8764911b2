from __future__ import annotations

from pathlib import Path

import pytest

from tightpack.benchmarking.trace import read_trace
from tightpack.benchmarking.workload import RequestShape

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"


@pytest.fixture
def trace(tmp_path: Path):
    def write(*lines: str, newline: str = "\n") -> Path:
        path = tmp_path / "trace.csv"
        path.write_bytes(newline.join((*lines, "")).encode())
        return path

    return write


def test_azure_timestamps_with_seven_decimals_and_windows_line_ends(trace) -> None:
    path = trace(
        HEADER,
        "2023-11-16 18:15:46.6805900,374,44",
        "2023-11-16 18:15:50.9951690,396,109",
        "2023-11-16 18:16:46.6805900,879,55",
        newline="\r\n",
    )
    first, second, third = read_trace(path, 3)
    assert first == RequestShape(0.0, 374, 44)
    assert second.arrival_s == pytest.approx(4.314579, abs=1e-6)
    assert (second.input_len, second.output_len) == (396, 109)
    assert third.arrival_s == pytest.approx(60.0)


def test_the_first_requests_and_a_time_scale(trace) -> None:
    path = trace(HEADER, "10,1,2", "11.5,3,4", "20,5,6")
    assert read_trace(path, 2, time_scale=2.0) == [RequestShape(0.0, 1, 2), RequestShape(3.0, 3, 4)]
    assert len(read_trace(path, 99)) == 3


def test_further_columns_a_byte_order_mark_and_zones(trace) -> None:
    path = trace(
        "\ufeffuser,TIMESTAMP,GeneratedTokens,ContextTokens",
        "a,2024-01-01T00:00:00Z,5,7",
        "b,2024-01-01T02:00:01+02:00,6,8",
    )
    assert read_trace(path, 2) == [RequestShape(0.0, 7, 5), RequestShape(1.0, 8, 6)]


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["TIMESTAMP,ContextTokens", "1,2"], "lacks the column GeneratedTokens"),
        ([HEADER], "holds no requests"),
        ([HEADER, "1,2,3", "yesterday,2,3"], "line 3: TIMESTAMP is 'yesterday'"),
        ([HEADER, "nan,2,3"], "line 2: TIMESTAMP is 'nan'"),
        ([HEADER, "1,2.5,3"], "line 2: ContextTokens is '2.5', not a number of tokens"),
        ([HEADER, "1,2"], "line 2: GeneratedTokens is None"),
        ([HEADER, "1,2,0"], "line 2: the output length must be at least 1"),
        ([HEADER, "5,1,1", "3,1,1"], "line 3: a request arrives 0 or more seconds after the start"),
    ],
)
def test_bad_files_are_refused_with_the_line(trace, lines: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_trace(trace(*lines), 9)


def test_not_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(b"\xff\xfe\x00\x80" * 20)
    with pytest.raises(ValueError, match="is not a text file"):
        read_trace(path, 1)


def test_missing_file_and_bad_numbers(tmp_path: Path, trace) -> None:
    with pytest.raises(FileNotFoundError, match=r"no trace file at .*absent\.csv"):
        read_trace(tmp_path / "absent.csv", 1)
    with pytest.raises(ValueError, match="time scale must be above 0"):
        read_trace(trace(HEADER, "1,1,1"), 1, time_scale=0.0)
    with pytest.raises(ValueError, match="at least 1 request"):
        read_trace(trace(HEADER, "1,1,1"), 0)


def test_skipping_and_scaling_lengths(trace) -> None:
    path = trace(HEADER, "10,100,200", "12,3,4", "16,1,50", "17,9,9")
    found = read_trace(path, 2, skip=1, length_scale=0.25)
    assert found == [RequestShape(0.0, 1, 1), RequestShape(4.0, 1, 12)]
    with pytest.raises(ValueError, match="holds no requests beyond the 4 skipped"):
        read_trace(path, 2, skip=4)
    with pytest.raises(ValueError, match="length scale must be above 0"):
        read_trace(path, 2, length_scale=0)


def test_scaling_does_not_hide_a_length_of_zero(trace) -> None:
    with pytest.raises(ValueError, match=r"line 2: the output length must be at least 1 token, got 0"):
        read_trace(trace(HEADER, "10,5,0"), 1, length_scale=0.5)
