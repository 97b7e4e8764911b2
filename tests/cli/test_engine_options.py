from __future__ import annotations

import dataclasses
import inspect

from tightpack.cli.options import engine_options
from tightpack.cli.serve import serve
from tightpack.engine_args import EngineArgs


def test_serve_has_every_engine_argument_as_an_option():
    names = {field.name for field in dataclasses.fields(EngineArgs)}
    assert names <= set(inspect.signature(serve).parameters)


def test_a_command_hands_on_what_means_the_same_everywhere():
    given = {"model": "m", "num_threads": 2, "seed": 3, "max_num_seqs": 4, "quiet": True}
    assert engine_options(given) == {"model": "m", "num_threads": 2}


def test_what_is_handed_on_is_an_engine_argument_of_the_same_default(request):
    args = EngineArgs()
    given = {name: parameter.default for name, parameter in inspect.signature(serve).parameters.items()}
    for name, default in engine_options(given).items():
        if name == "executor" and request.config.getoption("--executor") != "auto":
            continue  # another default was asked for
        assert getattr(args, name) == default, name
