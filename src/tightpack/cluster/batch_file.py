"""OpenAI's batch files: a request a line in, an answer a line out.

Input: {"custom_id", "method": "POST", "url", "body"}. Output: {"id", "custom_id", "response": {"status_code",
"request_id", "body"} or null, "error": {"code", "message"} or null}. (OpenAI API reference, Batch.)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tightpack.requests.arguments import nearest_hint

URLS = ("/v1/chat/completions", "/v1/completions")
_KEYS = ("custom_id", "method", "url", "body")
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class BatchLine:
    """number: from 1. digest: of the line as it stands in the file. error: what is wrong with it, if so."""

    number: int
    digest: str
    custom_id: str | None
    url: str = ""
    body: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None


def read_batch(lines: Iterable[bytes]) -> list[BatchLine]:
    """The requests of a file, in order; empty lines are none. A bad one comes with its error.

    Raises ValueError for a custom_id that comes twice: its answers could not be told apart.
    """
    read: list[BatchLine] = []
    first: dict[str, int] = {}
    doubled: list[str] = []
    for number, raw in enumerate(lines, start=1):
        if not raw.strip():
            continue
        line = _read_line(number, raw.strip())
        read.append(line)
        if line.custom_id is not None and first.setdefault(line.custom_id, number) != number:
            doubled.append(f"{line.custom_id!r} on lines {first[line.custom_id]} and {number}")
    if doubled:
        more = f", and {len(doubled) - _SHOWN} more" if len(doubled) > _SHOWN else ""
        raise ValueError(
            "duplicate_custom_id: "
            f"{', '.join(doubled[:_SHOWN])}{more}; a custom_id must be unique in its file"
        )
    return read


def _read_line(number: int, raw: bytes) -> BatchLine:
    digest = hashlib.sha256(raw).hexdigest()[:32]

    def bad(code: str, message: str, custom_id: str | None = None) -> BatchLine:
        error = {"code": code, "message": message, "line": number}
        return BatchLine(number, digest, custom_id, error=error)

    try:
        given = json.loads(raw)
    except (ValueError, RecursionError) as error:
        return bad("invalid_json_line", f"line {number} is not valid JSON: {error}")
    if not isinstance(given, dict):
        return bad("invalid_json_line", f"line {number} must be a JSON object")
    custom_id = given.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        return bad("missing_required_parameter", f"line {number}: custom_id must be a text that is not empty")
    for key in given:
        if key not in _KEYS:
            hint = nearest_hint(key, _KEYS, "a line has")
            return bad("unknown_parameter", f"line {number}: unknown key {key[:80]!r}; {hint}", custom_id)
    if given.get("method") != "POST":
        return bad("invalid_method", f"line {number}: method must be 'POST'", custom_id)
    if given.get("url") not in URLS:
        return bad("invalid_url", f"line {number}: url must be one of {', '.join(URLS)}", custom_id)
    body = given.get("body")
    if not isinstance(body, dict):
        return bad("missing_required_parameter", f"line {number}: body must be a JSON object", custom_id)
    if body.get("stream"):
        return bad("unsupported_value", f"line {number}: a batch cannot stream; leave stream out", custom_id)
    return BatchLine(number, digest, custom_id, str(given["url"]), body)


def failed(line: BatchLine, error: Mapping[str, Any]) -> dict[str, Any]:
    """The output line of a request that got no answer."""
    return {"id": _id(line), "custom_id": line.custom_id, "response": None, "error": dict(error)}


def answered(line: BatchLine, status: int, request_id: str, body: Any) -> dict[str, Any]:
    """The output line of a request that was answered, be it with an error of the API."""
    response = {"status_code": status, "request_id": request_id, "body": body}
    return {"id": _id(line), "custom_id": line.custom_id, "response": response, "error": None}


def succeeded(output: Mapping[str, Any]) -> bool:
    response = output["response"]
    return response is not None and bool(response["status_code"] == 200)


def output_tokens(output: Mapping[str, Any]) -> int:
    try:
        return int(output["response"]["body"]["usage"]["completion_tokens"])
    except (KeyError, TypeError, ValueError):
        return 0


def _id(line: BatchLine) -> str:
    # Of the line's content, so that the same line has the same id after a resumption.
    return f"batch_req_{line.digest}{line.number:x}"


def in_order(lines: Iterable[BatchLine], outputs: Mapping[int, str]) -> Iterator[str]:
    """The output file's lines. Raises ValueError when one is missing."""
    for line in lines:
        if line.number not in outputs:
            raise ValueError(f"line {line.number} has no answer")
        yield outputs[line.number]
