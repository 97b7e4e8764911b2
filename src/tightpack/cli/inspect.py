"""`tightpack inspect`: what a checkpoint is and what it costs, from its headers alone."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tightpack.cli.options import ModelArgument

if TYPE_CHECKING:
    from tightpack.checkpoints.checkpoint import Checkpoint


def inspect(
    model: ModelArgument = "smollm2-135m",
    *,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Print a model's parameters, bytes by precision, layers and KV bytes a token.

    Example: `tightpack inspect Qwen/Qwen2.5-0.5B-Instruct`
    """
    from tightpack.checkpoints.open import open_checkpoint

    facts = describe(open_checkpoint(model))
    if json:
        import json as json_module

        typer.echo(json_module.dumps(facts, indent=2))
    else:
        _print_table(facts)


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """The facts as JSON; bytes are those in the file, a quantized linear's with its scales under its codes'
    precision; `kv_bytes_per_token` those of the cache that the checkpoint is made for, bf16 where it states
    none."""
    from tightpack.architectures.kv_memory import ELEMENT_BYTES

    spec, tokenizer = checkpoint.spec, checkpoint.tokenizer
    num_bytes: Counter[str] = Counter()
    for name in spec.tensor_shapes():
        info = checkpoint.tensors.infos[name]
        num_bytes[info.precision] += info.num_bytes
    windows = Counter(layer.window for layer in spec.layers)
    cache = checkpoint.kv_cache_format.precision if checkpoint.kv_cache_format else "bf16"
    return {
        "model": checkpoint.name,
        "architecture": spec.family,
        "parameters": checkpoint.num_parameters,
        "active_parameters": checkpoint.num_active_parameters,
        "bytes": sum(num_bytes.values()),
        "bytes_by_precision": dict(num_bytes.most_common()),
        "bits_per_parameter": round(8 * sum(num_bytes.values()) / checkpoint.num_parameters, 2),
        "quantization": _quantization(checkpoint),
        "layers": spec.num_layers,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "experts": _experts(checkpoint),
        "heads": spec.num_heads,
        "kv_heads": spec.num_kv_heads,
        "head_dim": spec.head_dim,
        "vocab_size": spec.vocab_size,
        "context_length": spec.max_position_embeddings,
        "kv_cache": cache,
        "kv_bytes_per_token": spec.kv_bytes_per_token(ELEMENT_BYTES[cache]),
        "cpu_memory": _cpu_memory(checkpoint),
        "rope": _rope(checkpoint),
        "sliding_windows": {str(window): count for window, count in windows.items() if window is not None},
        "full_attention_layers": windows[None],
        "tied_head": spec.tied_embeddings,
        "tokenizer": {"kind": tokenizer.kind, "vocab_size": tokenizer.vocab_size},
        "chat_template": tokenizer.has_chat_template,
        "eos_token_ids": list(spec.eos_token_ids),
    }


def _cpu_memory(checkpoint: Checkpoint) -> dict[str, int] | None:
    """Bytes that serving takes on this machine's CPU under default arguments; None where it cannot."""
    from tightpack.architectures import kv_memory
    from tightpack.checkpoints.precision import resolve_kv_cache
    from tightpack.engine_args import EngineArgs
    from tightpack.native_cpu.memory import predict

    args, spec = EngineArgs(), checkpoint.spec
    kv_cache = resolve_kv_cache("auto", checkpoint, "bf16")
    try:
        num_blocks = kv_memory.blocks_within(
            kv_memory.cpu_budget(),
            spec,
            block_size=args.block_size,
            kv_format=kv_cache,
            max_num_seqs=args.max_num_seqs,
            max_model_len=spec.max_position_embeddings,
        )
    except MemoryError:
        return None
    memory = predict(checkpoint, kv_cache, block_size=args.block_size, num_blocks=num_blocks)
    return {
        "weights": memory.weights,
        "kv_pool": memory.kv_pool,
        "process": memory.process,
        "total": memory.total,
    }


def _experts(checkpoint: Checkpoint) -> dict[str, int] | None:
    """Of the layers that are mixtures; None where there are none."""
    mixtures = [layer.experts for layer in checkpoint.spec.layers if layer.experts is not None]
    if not mixtures:
        return None
    first = mixtures[0]
    return {
        "layers": len(mixtures),
        "count": first.count,
        "per_token": first.experts_per_token,
        "intermediate_size": first.intermediate_size,
    }


def _quantization(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The method, how many linears have each scheme, and how many have none."""
    quantization = checkpoint.quantization
    if quantization is None:
        return None
    from tightpack.checkpoints.quantized_tensors import linear_names

    schemes = Counter(quantization.linears.values())
    return {
        "method": quantization.method,
        "linears_by_scheme": dict(schemes.most_common()),
        "linears_unquantized": sum(
            name not in quantization.linears for name in linear_names(checkpoint.spec)
        ),
    }


def _rope(checkpoint: Checkpoint) -> list[str]:
    """One line a kind of rotary embedding among the layers: `theta 500,000, llama3 x 32`."""
    config = checkpoint.config
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    lines = []
    for given in nested or [parameters]:
        theta = given.get("rope_theta") or config.get("rope_theta") or 10_000.0
        kind = given.get("rope_type") or given.get("type") or "default"
        factor = f" x {given['factor']:g}" if given.get("factor") else ""
        lines.append(f"theta {theta:,.0f}" + ("" if kind == "default" else f", {kind}{factor}"))
    if config.get("rope_local_base_freq"):
        lines.append(f"theta {config['rope_local_base_freq']:,.0f} in windowed layers")
    return list(dict.fromkeys(lines))


def _print_table(facts: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=facts["model"], title_style="bold", box=box.ROUNDED, show_header=False, pad_edge=True)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()

    table.add_row("architecture", facts["architecture"])
    table.add_row(
        "parameters", f"{_scaled(facts['parameters'], 1000, ('', 'K', 'M', 'B'))}  ({facts['parameters']:,})"
    )
    if facts["experts"]:
        active = facts["active_parameters"]
        table.add_row("  active", f"{_scaled(active, 1000, ('', 'K', 'M', 'B'))} a token  ({active:,})")
    table.add_row("weights", f"{_size(facts['bytes'])}, {facts['bits_per_parameter']} bits a parameter")
    for precision, num_bytes in facts["bytes_by_precision"].items():
        table.add_row(f"  {precision}", f"{_size(num_bytes)}  ({num_bytes / facts['bytes']:.1%})")
    if facts["quantization"]:
        table.add_row("quantization", _schemes(facts["quantization"]))
    table.add_section()
    table.add_row("layers", f"{facts['layers']}")
    table.add_row("hidden, MLP", f"{facts['hidden_size']:,}, {facts['intermediate_size']:,}")
    if facts["experts"]:
        experts = facts["experts"]
        table.add_row(
            "experts",
            f"{experts['per_token']} of {experts['count']}, {experts['intermediate_size']:,} wide, in "
            f"{experts['layers']} layers",
        )
    table.add_row(
        "heads", f"{facts['heads']} of {facts['head_dim']}, {facts['kv_heads']} for keys and values"
    )
    table.add_row("attention", _attention(facts))
    table.add_row("rope", "\n".join(facts["rope"]))
    table.add_row(
        "vocabulary", f"{facts['vocab_size']:,}" + (", head tied" if facts["tied_head"] else ", own head")
    )
    table.add_section()
    table.add_row("context", f"{facts['context_length']:,} tokens")
    whole = facts["kv_bytes_per_token"] * facts["context_length"]
    table.add_row(
        "KV cache",
        f"{_size(facts['kv_bytes_per_token'])} a token in {facts['kv_cache']}, {_size(whole)} a full context",
    )
    memory = facts["cpu_memory"]
    if memory is not None:
        table.add_row(
            "serving on a CPU",
            f"up to {_size(memory['total'])}: weights {_size(memory['weights'])}, KV pool "
            f"{_size(memory['kv_pool'])} as it fills, process {_size(memory['process'])}",
        )
    table.add_section()
    table.add_row("tokenizer", f"{facts['tokenizer']['kind']}, {facts['tokenizer']['vocab_size']:,} tokens")
    table.add_row("ends at", ", ".join(map(str, facts["eos_token_ids"])) or "nothing")
    table.add_row("chat template", "yes" if facts["chat_template"] else "no")
    Console().print(table)


def _schemes(quantization: dict[str, Any]) -> str:
    lines = [f"{scheme} in {count} linears" for scheme, count in quantization["linears_by_scheme"].items()]
    if quantization["linears_unquantized"]:
        lines.append(f"none in {quantization['linears_unquantized']}")
    return "\n".join([quantization["method"], *(f"  {line}" for line in lines)])


def _attention(facts: dict[str, Any]) -> str:
    if not facts["sliding_windows"]:
        return "full in all layers"
    parts = [
        f"window of {int(window):,} in {count} layers" for window, count in facts["sliding_windows"].items()
    ]
    if facts["full_attention_layers"]:
        parts.append(f"full in {facts['full_attention_layers']}")
    return ", ".join(parts)


def _size(num_bytes: float) -> str:
    return _scaled(num_bytes, 1024, (" B", " KiB", " MiB", " GiB", " TiB"))


def _scaled(value: float, base: int, units: tuple[str, ...]) -> str:
    """`134.5M`, `86.4 MiB`: the unit that leaves the number below the base."""
    step = 0
    while value >= base and step < len(units) - 1:
        value, step = value / base, step + 1
    return f"{value:.0f}{units[step]}" if step == 0 else f"{value:.1f}{units[step]}"
