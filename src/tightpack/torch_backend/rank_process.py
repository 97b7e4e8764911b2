"""`python -m tightpack.torch_backend.rank_process PIPE RANK`: a rank that follows rank 0.

A process started so does not run its parent's main module again, as multiprocessing's would.
"""

from __future__ import annotations

import os
import signal
import sys
from multiprocessing.connection import Connection

import torch

from tightpack.torch_backend.ranks import end_with, follow


def main() -> None:
    pipe = Connection(int(sys.argv[1]))
    # An interrupt from the terminal reaches all processes; rank 0 decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with(os.getppid())
    try:
        with torch.inference_mode():
            follow(pipe, int(sys.argv[2]))
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
        raise


if __name__ == "__main__":
    main()
