"""`tightpack chat`: a conversation in the terminal."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Annotated

import typer

from tightpack.cli.generate import chat_prompt, print_stream
from tightpack.cli.options import (
    ActivationDtypeOption,
    DeviceOption,
    DtypeOption,
    ExecutorOption,
    KVCacheDtypeOption,
    ModelArgument,
    QuantizationOption,
    TemperatureOption,
    TensorParallelOption,
    ThreadsOption,
    ThresholdOption,
    engine_options,
)
from tightpack.engine_args import DEFAULT_MODEL, LLM_INT8_THRESHOLD
from tightpack.requests.sampling_params import SamplingParams


def chat(
    model: ModelArgument = DEFAULT_MODEL,
    system: Annotated[str | None, typer.Option(help="A system message to begin with.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Output tokens an answer at the most.")] = 512,
    temperature: TemperatureOption = 0.7,
    top_p: Annotated[float, typer.Option(help="Nucleus sampling.")] = 0.95,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answers.")] = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    executor: ExecutorOption = "auto",
    activation_dtype: ActivationDtypeOption = "auto",
    quantization: QuantizationOption = None,
    llm_int8_threshold: ThresholdOption = LLM_INT8_THRESHOLD,
    kv_cache_dtype: KVCacheDtypeOption = "auto",
    num_threads: ThreadsOption = None,
    tensor_parallel_size: TensorParallelOption = 1,
) -> None:
    """Talk with a model. /clear forgets the conversation, Ctrl-C stops an answer, /exit or Ctrl-D ends it.

    Example: `tightpack chat --system "Answer in one sentence."`
    """
    given = locals()
    from tightpack.async_llm import AsyncLLM

    with suppress(ImportError):
        import readline  # noqa: F401  (`input` then has arrow keys and a history)

    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    engine = AsyncLLM(**engine_options(given), max_num_seqs=1)
    opening = [{"role": "system", "content": system}] if system else []
    messages = list(opening)
    typer.echo(
        f"{engine.model_name}: /clear forgets the conversation, Ctrl-C stops an answer, "
        "/exit or Ctrl-D ends it"
    )
    try:
        while True:
            try:
                said = input("> ").strip()
            except EOFError:
                break
            if said == "/exit":
                break
            if said == "/clear":
                messages = list(opening)
            elif said:
                messages.append({"role": "user", "content": said})
                # The prefix cache holds the conversation so far, so each turn computes only what is new.
                try:
                    answer = asyncio.run(print_stream(engine, chat_prompt(engine, messages), params))
                except KeyboardInterrupt:
                    typer.echo(" [stopped]")
                    messages.pop()
                except ValueError as error:
                    typer.echo(f"{error}; /clear begins anew", err=True)
                    messages.pop()
                else:
                    messages.append({"role": "assistant", "content": answer})
    finally:
        engine.close()
