"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

ModelArgument = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="smollm2-135m, a Hugging Face directory, a GGUF file or a hub id."),
]
ModelOption = Annotated[
    str,
    typer.Option(
        "--model", metavar="MODEL", help="smollm2-135m, a Hugging Face directory, a GGUF file or a hub id."
    ),
]
DtypeOption = Annotated[
    str,
    typer.Option(help="auto (float16 if the checkpoint is, else bfloat16), bfloat16, float16 or float32."),
]
QuantizationOption = Annotated[
    str | None,
    typer.Option(
        help="Quantize on loading: int8, w8a8, llm.int8, int4 or fp8. Or what the checkpoint must be: awq, "
        "gptq, compressed-tensors, fp8, bitsandbytes or gguf."
    ),
]
ThresholdOption = Annotated[
    float, typer.Option(help="Of --quantization llm.int8: larger activations stay in 16 bits.")
]
KVCacheDtypeOption = Annotated[
    str, typer.Option(help="auto (the checkpoint's, or --dtype), fp8, int8, bfloat16, float16 or float32.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
ExecutorOption = Annotated[
    str,
    typer.Option(help="auto (native on a CPU, PyTorch for what native lacks and on CUDA), native or torch."),
]
ActivationDtypeOption = Annotated[
    str,
    typer.Option(
        help="Of the native executor, inputs of integer weights: auto and int8 round them to 8 bits in "
        "groups, bfloat16 is exact weight-only arithmetic."
    ),
]
ThreadsOption = Annotated[
    int | None, typer.Option("--num-threads", help="CPU threads; one a physical core if not given.")
]
TensorParallelOption = Annotated[
    int,
    typer.Option(
        "--tensor-parallel-size", "-tp", help="Processes that divide the model, each with a GPU of its own."
    ),
]
EnforceEagerOption = Annotated[bool, typer.Option("--enforce-eager", help="Record no CUDA graphs.")]
PromptGraphTokensOption = Annotated[
    int,
    typer.Option(
        min=0, help="On CUDA, the largest step with prompt tokens that runs in recorded pieces; 0: none."
    ),
]
AttentionBackendOption = Annotated[
    str,
    typer.Option(
        help="On CUDA, whose kernel attends to prompts: auto (the faster one), triton (ours) or flashinfer."
    ),
]
AsyncSchedulingOption = Annotated[
    bool | None,
    typer.Option(
        "--async-scheduling/--no-async-scheduling",
        help="Plan and launch the next step while the device computes one: so on one GPU, if not given.",
    ),
]
ServiceClassOption = Annotated[
    list[str] | None,
    typer.Option(
        "--service-class",
        metavar="NAME:KEY=VALUE,…",
        help="Targets and share of interactive, standard or batch, such as "
        "interactive:ttft=0.5,tpot=0.05,share=0.3; repeatable.",
    ),
]
ServiceClassesOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The same as YAML or JSON: interactive: {ttft: 0.5, tpot: 0.05}."),
]
TemperatureOption = Annotated[float, typer.Option(help="0 is greedy.")]

# Options of these names mean the same in every command that has them.
_OF_THE_ENGINE = (
    *("model", "dtype", "device", "executor", "activation_dtype", "num_threads"),
    *("quantization", "llm_int8_threshold", "kv_cache_dtype", "enable_prefix_caching"),
    *("tensor_parallel_size", "enforce_eager", "prompt_graph_tokens", "async_scheduling"),
    "attention_backend",
)


def engine_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The engine arguments among a command's own (its `locals()`), to be handed on as they are.

    Others that an engine has too, such as seed and max_num_seqs, mean something else here and there.
    """
    return {name: given[name] for name in _OF_THE_ENGINE if name in given}
