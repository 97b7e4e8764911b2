"""`python -m tightpack.planning.simulation_process PIPE`: makes the calls that come through the pipe.

A process started so does not run its parent's main module again, as multiprocessing's would.
"""

from __future__ import annotations

import signal
import sys
from multiprocessing.connection import Connection


def main() -> None:
    pipe = Connection(int(sys.argv[1]))
    # An interrupt from the terminal reaches all processes; the parent ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        common = pipe.recv()
        while True:
            call, arguments = pipe.recv()
            try:
                result = call(*arguments, common)
            except Exception as error:
                result = error
            pipe.send(result)
    except (EOFError, BrokenPipeError):
        return  # the parent has gone


if __name__ == "__main__":
    main()
