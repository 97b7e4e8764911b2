"""Opens what `tightpack bench --simulate` measures: the serving loop on a virtual clock."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tightpack.architectures.model_spec import ModelSpec
from tightpack.benchmarking.openai_api import ORDINARY_TOKENS
from tightpack.benchmarking.target import InProcess
from tightpack.cli.bench_plan import Plan
from tightpack.cli.bench_target import Opened
from tightpack.engine_args import EngineArgs, resolve_limits
from tightpack.planning.models import open_model
from tightpack.serving_loop.loop import ServingLoop
from tightpack.simulated.catalogue import load_catalogue
from tightpack.simulated.cost_model import CostModel
from tightpack.simulated.engine import make_simulated_loop
from tightpack.simulated.fitted import FittedCostModel
from tightpack.simulated.hardware import PRECISIONS, precision
from tightpack.simulated.roofline import RooflineCostModel
from tightpack.simulated.virtual_clock import VirtualClock

_BLOCK_SIZE = 16
# N devices that share every layer, as in 8xh100:MODEL.
_DEVICES = re.compile(r"(?:(?P<count>\d+)\s*x\s*)?(?P<device>[A-Za-z][\w.-]*):(?P<model>.+)")
_KV_BITS = {"auto": 16, "bfloat16": 16, "float16": 16, "fp8": 8, "fp8_e4m3": 8, "int8": 8, "float32": 32}


@dataclass(frozen=True, slots=True)
class Simulation:
    """What stands in for an engine. device: whose default budgets hold, "cpu" or "cuda"."""

    cost_model: CostModel
    name: str
    label: str
    num_blocks: int
    block_size: int
    max_model_len: int
    device: str


@contextmanager
def open_simulation(arguments: Mapping[str, Any], plan: Plan) -> Iterator[Opened]:
    """Raises ValueError, naming what would be right, for a source that is neither a file nor a device."""
    simulation = read_simulation(
        arguments["simulate"], arguments["quantization"], arguments["kv_cache_dtype"], plan.max_model_len
    )
    caching = bool(arguments["enable_prefix_caching"])

    def make_loop(policy: str, **given: Any) -> ServingLoop:
        args = EngineArgs(
            policy=policy,
            block_size=simulation.block_size,
            enable_prefix_caching=caching,
            max_queue=1_000_000,  # the load is bounded by what is asked for, not by a server's patience
            **given,
        )
        limits = resolve_limits(args, simulation.max_model_len, simulation.num_blocks, simulation.device)
        return make_simulated_loop(simulation.cost_model, limits, policy, VirtualClock())

    yield Opened(
        target=InProcess(make_loop, plan.limits),
        name=simulation.name,
        label=simulation.label,
        where="simulated",
        executor={"backend": "simulated", **simulation.cost_model.description},
        # A tuple, so that the millions of tokens of long traces are the same few objects.
        vocabulary=tuple(ORDINARY_TOKENS),
        max_model_len=simulation.max_model_len,
        prefix_caching=caching,
        fresh_prompts=False,
        warms_up=False,
    )


def read_simulation(
    source: str,
    quantization: str | None = None,
    kv_cache_dtype: str = "auto",
    max_model_len: int | None = None,
) -> Simulation:
    """From DEVICE:MODEL (8xh100:MODEL for eight that share each layer), or a file of `calibrate-cost`."""
    if Path(source).is_file():
        if quantization is not None or kv_cache_dtype != "auto":
            raise ValueError(
                f"{source} is of the precision it was measured in; drop --quantization and --kv-cache-dtype"
            )
        return _fitted(Path(source), max_model_len)
    match = _DEVICES.fullmatch(source)
    if match is None:
        raise ValueError(
            f"--simulate takes DEVICE:MODEL, such as h100:llama-3.1-8b or 8xh100:config.json, or a file that "
            f"`tightpack calibrate-cost` wrote; got {source!r}"
        )
    machine = load_catalogue()[match["device"]]
    if quantization is not None and quantization not in PRECISIONS:
        raise ValueError(f"--simulate knows --quantization {', '.join(PRECISIONS)}; got {quantization!r}")
    if kv_cache_dtype not in _KV_BITS:
        raise ValueError(f"--simulate knows --kv-cache-dtype {', '.join(_KV_BITS)}; got {kv_cache_dtype!r}")
    kv_bits = _KV_BITS[kv_cache_dtype]
    model = open_model(match["model"])
    weights = model.stored if quantization is None and model.stored else precision(quantization or "bf16")
    cost_model = RooflineCostModel(
        model.spec,
        machine,
        replace(weights, kv_bits=kv_bits),
        tensor_parallel_size=int(match["count"] or 1),
    )
    num_blocks = cost_model.num_blocks(_BLOCK_SIZE)
    return Simulation(
        cost_model,
        name=model.name,
        label=f"{cost_model.description['device']} {weights.name}",
        num_blocks=num_blocks,
        block_size=_BLOCK_SIZE,
        max_model_len=_context(model.spec, num_blocks, max_model_len),
        device="cuda",
    )


def _context(spec: ModelSpec, num_blocks: int, asked: int | None) -> int:
    """The model's own context, or as much of it as the KV cache holds of one request."""
    longest = spec.max_position_embeddings
    if asked is not None and asked > longest:
        raise ValueError(f"--max-model-len {asked} is beyond the {longest} positions of the model")
    return asked or min(longest, num_blocks * _BLOCK_SIZE)


def _fitted(path: Path, max_model_len: int | None) -> Simulation:
    model = FittedCostModel.read(path)
    measured = model.manifest.get("limits", {})
    lacking = [name for name in ("num_blocks", "block_size", "positions") if name not in measured]
    if lacking:
        raise ValueError(
            f"{path} does not say its {lacking[0]}; write it anew with `tightpack calibrate-cost`"
        )
    name = str(model.manifest.get("model", path.stem))
    return Simulation(
        model,
        name=name,
        label=f"simulated {name}",
        num_blocks=measured["num_blocks"],
        block_size=measured["block_size"],
        max_model_len=max_model_len or measured["positions"],
        device="cuda" if model.description.get("device", "cpu").startswith("cuda") else "cpu",
    )
