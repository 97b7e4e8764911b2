"""The rank that leads a tensor-parallel engine: it starts the others, tells them each step, and notices when
one is gone.

The others are processes of their own (`rank_process`). A call goes out as a few hundred bytes through a pipe
to each, before this rank makes it itself; the collectives inside keep all in step.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, Pipe, wait
from typing import TypeVar

from torch import Tensor

from tightpack.checkpoints.checkpoint import Checkpoint
from tightpack.serving_loop.executor import ExecutorDiedError
from tightpack.torch_backend.model_runner import Computed, ModelRunner, RunnerOptions
from tightpack.torch_backend.rank_group import RankGroup, open_store
from tightpack.torch_backend.split import Split
from tightpack.torch_backend.step_inputs import Piece

Result = TypeVar("Result")
OpenCheckpoint = Callable[[], Checkpoint]

_MODULE = "tightpack.torch_backend.rank_process"
_POLL_S = 0.2
# A rank that died has closed its connections before the system has told its parent.
_GRACE_S = 5.0


class LeadingRunner:
    """A `Runner` that is rank 0 of `size`.

    open_checkpoint: the checkpoint once more, in another process: something that can be pickled.
    Raises ExecutorDiedError, naming the rank, from the call in which one is found gone; after any error of a
    call the ranks are no longer at one place, so the engine is at its end.
    """

    def __init__(
        self, checkpoint: Checkpoint, options: RunnerOptions, size: int, open_checkpoint: OpenCheckpoint
    ) -> None:
        Split(checkpoint.spec, 0, size)  # what does not divide is said before anything starts
        self._group = RankGroup(0, size)
        self._ranks: list[_Rank] = []
        self._closing = False
        store = open_store(0, size)
        try:
            setup = pickle.dumps((open_checkpoint, options, size, store.port))
            self._ranks = [_Rank(number, setup, self._lost) for number in range(1, size)]
            self._own = ModelRunner(checkpoint, options, self._group)
            for rank in self._ranks:
                rank.expect("loaded")
            self._together(lambda: self._group.join(store, self._own.device))
            self._together(self._own.allocate)
            for rank in self._ranks:
                rank.expect("ready")
        except BaseException:
            self.close()
            raise

    @property
    def num_blocks(self) -> int:
        return self._own.num_blocks

    @property
    def unrounded(self) -> Sequence[str]:
        return self._own.unrounded

    def forward(self, pieces: Sequence[Piece]) -> Computed:
        self._tell("forward", pieces)
        return self._together(lambda: self._own.forward(pieces))

    def logits(self, rows: Sequence[int]) -> Tensor:
        self._tell("logits", rows)
        return self._together(lambda: self._own.logits(rows))

    def keep(self, tokens: Tensor) -> None:
        raise RuntimeError("several ranks keep no tokens: they get them from the host of rank 0")

    def clear(self, pieces: Sequence[Piece]) -> None:
        self._tell("clear", pieces)
        self._together(lambda: self._own.clear(pieces))

    def close(self) -> None:
        self._closing = True
        for rank in self._ranks:
            rank.stop()
        if hasattr(self, "_own"):
            self._own.close()

    def _tell(self, method: str, argument: object) -> None:
        message = pickle.dumps((method, argument))
        for rank in self._ranks:
            rank.send(message)

    def _together(self, call: Callable[[], Result]) -> Result:
        try:
            return call()
        except Exception as error:
            for rank in self._ranks:
                rank.raise_if_gone(_GRACE_S / len(self._ranks), error)
            raise ExecutorDiedError(
                f"tensor-parallel rank 0 failed, and the others are in the middle of its step: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _lost(self) -> None:
        if not self._closing:
            self._group.abort()


class _Rank:
    """Another rank's process and the pipe to it. gone: called, on a thread, once the process has ended."""

    def __init__(self, number: int, setup: bytes, gone: Callable[[], None]) -> None:
        self._number = number
        self._pipe, theirs = Pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", _MODULE, str(theirs.fileno()), str(number)],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        self._ended = threading.Event()
        self._gone = gone
        threading.Thread(target=self._watch, name=f"tightpack-rank-{number}", daemon=True).start()
        self.send(setup)

    def send(self, message: bytes) -> None:
        try:
            self._pipe.send_bytes(message)
        except OSError as error:
            self.raise_if_gone(_GRACE_S, error)
            raise

    def expect(self, word: str) -> None:
        """Wait until the rank says so; it takes as long as its part of the weights."""
        while not wait([self._pipe], _POLL_S):
            if self._ended.is_set() and not self._pipe.poll():
                break
        said = self._said()
        if said != word:
            raise self._error(said)

    def raise_if_gone(self, grace_s: float, cause: BaseException) -> None:
        if self._ended.wait(grace_s):
            raise self._error(self._said()) from cause

    def stop(self) -> None:
        self._pipe.close()
        try:
            self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _watch(self) -> None:
        self._process.wait()
        self._ended.set()
        self._gone()

    def _said(self) -> str | None:
        """What the rank has sent: that it has come so far, or why it has ended."""
        try:
            return str(self._pipe.recv()) if self._pipe.poll() else None
        except (OSError, EOFError):
            return None

    def _error(self, said: str | None) -> ExecutorDiedError:
        code = self._process.poll()
        if said is not None:
            how = f"failed: {said}"
        elif code is not None and code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
        else:
            how = f"ended with exit code {code}"
        return ExecutorDiedError(
            f"tensor-parallel rank {self._number} (process {self._process.pid}) {how}; its part of the model "
            "is gone, so the engine has ended"
        )


def follow(pipe: Connection, number: int) -> None:
    """Be rank `number`: load its part, then make each call that rank 0 makes, until the pipe closes."""
    open_checkpoint, options, size, port = pickle.loads(pipe.recv_bytes())
    group = RankGroup(number, size)
    runner = ModelRunner(open_checkpoint(), options, group)
    pipe.send("loaded")
    group.join(open_store(port, size), runner.device)
    runner.allocate()
    pipe.send("ready")
    while True:
        try:
            method, argument = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        getattr(runner, method)(argument)


def end_with(parent: int, seconds: float = 1.0) -> None:
    """End this process once `parent` has ended: a collective would wait for it."""

    def watch() -> None:
        while os.getppid() == parent:
            threading.Event().wait(seconds)
        os._exit(1)

    threading.Thread(target=watch, name="tightpack-parent", daemon=True).start()
