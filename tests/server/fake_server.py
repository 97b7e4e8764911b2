"""A server process over the engine without a model: fake_server.py DELAY DRAIN_TIMEOUT."""

from __future__ import annotations

import sys

from fake_engine import FakeEngine

from tightpack.server.listening import address_of, open_socket
from tightpack.server.run import run_server

if __name__ == "__main__":
    delay, drain_timeout = map(float, sys.argv[1:])
    engine = FakeEngine(delay=delay)
    sock = open_socket("127.0.0.1", 0)
    run_server(
        engine,
        model_name="fake",
        sock=sock,
        drain_timeout=drain_timeout,
        on_ready=lambda: print(f"ready {address_of(sock)}"),
        on_drain=lambda in_flight: print(f"draining {in_flight}"),
    )
    assert engine.closed
    print("ended")
