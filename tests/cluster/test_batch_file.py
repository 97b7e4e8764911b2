"""Reading batch files, and the journal that lets a run go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tightpack.cluster.batch_file import BatchLine, answered, read_batch, succeeded
from tightpack.cluster.batch_journal import Journal


def line(custom_id: str = "a", **changes: Any) -> bytes:
    given: dict[str, Any] = {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/completions",
        "body": {"prompt": "x"},
    }
    return json.dumps({**given, **changes}).encode()


def test_reads_in_order_and_skips_empty_lines() -> None:
    read = read_batch([line("b"), b"\n", line("a"), b"  "])
    assert [(one.number, one.custom_id, one.error) for one in read] == [(1, "b", None), (3, "a", None)]


@pytest.mark.parametrize(
    ("raw", "code", "said"),
    [
        (b"{", "invalid_json_line", "line 1 is not valid JSON"),
        (b"[]", "invalid_json_line", "must be a JSON object"),
        (b'{"method": "POST"}', "missing_required_parameter", "custom_id"),
        (line(method="GET"), "invalid_method", "'POST'"),
        (line(url="/v1/embeddings"), "invalid_url", "/v1/chat/completions"),
        (line(body=None), "missing_required_parameter", "body"),
        (line(body={"stream": True}), "unsupported_value", "cannot stream"),
        (line(customid="x"), "unknown_parameter", "did you mean 'custom_id'?"),
    ],
)
def test_a_bad_line_is_an_error_of_its_own(raw: bytes, code: str, said: str) -> None:
    (one,) = read_batch([raw])
    assert one.error is not None
    assert one.error["code"] == code
    assert said in one.error["message"]


def test_a_doubled_custom_id_is_refused() -> None:
    with pytest.raises(ValueError, match="'a' on lines 1 and 3; a custom_id must be unique"):
        read_batch([line("a"), line("b"), line("a")])


def output(one: BatchLine, text: str = "y") -> dict[str, Any]:
    return answered(one, 200, "req", {"text": text})


def test_the_output_is_in_the_order_of_the_input(tmp_path: Path) -> None:
    lines = read_batch([line("a"), line("b"), line("c")])
    out = tmp_path / "out.jsonl"
    with Journal(out, lines, {"model": "m"}) as journal:
        for one in reversed(lines):
            assert journal.add(one, output(one))
            assert not journal.add(one, output(one, "again"))
        assert not out.exists()
        journal.finish()
    written = [json.loads(text) for text in out.read_text().splitlines()]
    assert [one["custom_id"] for one in written] == ["a", "b", "c"]
    assert all(succeeded(one) and one["response"]["body"] == {"text": "y"} for one in written)
    assert list(tmp_path.iterdir()) == [out]


def test_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    lines = read_batch([line("a"), line("b"), line("c")])
    out = tmp_path / "out.jsonl"
    with Journal(out, lines, {"model": "m"}) as journal:
        journal.add(lines[0], output(lines[0], "kept"))
        journal.add(lines[2], output(lines[2], "kept"))
    partial = tmp_path / "out.jsonl.partial"
    partial.write_bytes(partial.read_bytes()[:-9])  # in the middle of the last entry
    with Journal(out, lines, {"model": "m"}) as journal:
        assert [one.custom_id for one in journal.missing] == ["b", "c"]
        for one in journal.missing:
            journal.add(one, output(one, "new"))
        journal.finish()
    texts = [json.loads(text)["response"]["body"]["text"] for text in out.read_text().splitlines()]
    assert texts == ["kept", "new", "new"]


def test_a_changed_line_is_asked_again(tmp_path: Path) -> None:
    lines = read_batch([line("a"), line("b")])
    with Journal(tmp_path / "o", lines, {}) as journal:
        for one in lines:
            journal.add(one, output(one))
    changed = read_batch([line("a"), line("b", body={"prompt": "other"})])
    with Journal(tmp_path / "o", changed, {}) as journal:
        assert [one.custom_id for one in journal.missing] == ["b"]


def test_another_run_is_not_mixed_in(tmp_path: Path) -> None:
    lines = read_batch([line("a")])
    head = {"model": "m"}
    with Journal(tmp_path / "o", lines, head), pytest.raises(BlockingIOError, match="another run"):
        Journal(tmp_path / "o", lines, head)
    with pytest.raises(ValueError, match="of a run with model 'm', not 'n'"):
        Journal(tmp_path / "o", lines, {"model": "n"})
