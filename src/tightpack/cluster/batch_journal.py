"""Answers as they come, kept beside the output until it is whole, so that a run can be taken up again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tightpack.cluster.batch_file import BatchLine, in_order


class Journal:
    """OUT.partial: a head that says what is run, then {"number", "digest", "output"} an answer, in any order.

    outputs: line number to the JSON text of its output line.
    Raises ValueError when there is a journal of something else, and BlockingIOError while another process
    writes it.
    """

    def __init__(self, output: Path, lines: Iterable[BatchLine], head: Mapping[str, Any]) -> None:
        self._output = output
        self.path = output.with_name(output.name + ".partial")
        self._lines = list(lines)
        self.outputs: dict[int, str] = {}
        self._file = open(self.path, "a+b")  # noqa: SIM115 - closed by __exit__
        try:
            self._lock()
            self._take_up(dict(head))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def missing(self) -> list[BatchLine]:
        return [line for line in self._lines if line.number not in self.outputs]

    def add(self, line: BatchLine, output: Mapping[str, Any]) -> bool:
        """Enter an answer; False if the line has one already, which then stays."""
        if line.number in self.outputs:
            return False
        text = json.dumps(output, ensure_ascii=False, separators=(",", ":"))
        self.outputs[line.number] = text
        self._write(f'{{"number":{line.number},"digest":"{line.digest}","output":{text}}}\n')
        return True

    def finish(self) -> None:
        """Write the output in the input's order, whole or not at all, and remove the journal."""
        temporary = self._output.with_name(self._output.name + ".writing")
        with open(temporary, "w", encoding="utf-8") as file:
            file.writelines(f"{text}\n" for text in in_order(self._lines, self.outputs))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._output)
        self.path.unlink()

    def _lock(self) -> None:
        import fcntl

        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"{self.path} is being written by another run") from None

    def _take_up(self, head: dict[str, Any]) -> None:
        self._file.seek(0)
        content = self._file.read()
        whole, _, torn = content.rpartition(b"\n")
        if torn:  # the last entry of a run that was cut off
            self._file.truncate(len(content) - len(torn))
        entries = whole.split(b"\n") if whole else []
        if not entries:
            self._write(json.dumps(head) + "\n")
            return
        before = json.loads(entries[0])
        if before != head:
            changed = next(key for key in head if before.get(key) != head[key])
            raise ValueError(
                f"{self.path} is of a run with {changed} {before.get(changed)!r}, not {head[changed]!r}; "
                "finish that one, or remove the file to begin anew"
            )
        digests = {line.number: line.digest for line in self._lines}
        for entry in entries[1:]:
            one = json.loads(entry)
            # A line that has been changed since is asked again.
            if digests.get(one["number"]) == one["digest"]:
                self.outputs[one["number"]] = json.dumps(
                    one["output"], ensure_ascii=False, separators=(",", ":")
                )

    def _write(self, text: str) -> None:
        self._file.write(text.encode())
        self._file.flush()
