"""`tightpack generate`: one prompt, answered on standard output as it comes."""

from __future__ import annotations

import asyncio
import sys
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated

import typer

from tightpack.cli.options import (
    ActivationDtypeOption,
    AsyncSchedulingOption,
    DeviceOption,
    DtypeOption,
    EnforceEagerOption,
    ExecutorOption,
    KVCacheDtypeOption,
    ModelOption,
    QuantizationOption,
    TemperatureOption,
    TensorParallelOption,
    ThreadsOption,
    ThresholdOption,
    engine_options,
)
from tightpack.engine_args import DEFAULT_MODEL, LLM_INT8_THRESHOLD
from tightpack.requests.sampling_params import SamplingParams

if TYPE_CHECKING:
    from tightpack.async_llm import AsyncLLM
    from tightpack.requests.prompts import Prompt


def generate(
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="The text to go on from; - reads standard input.")
    ],
    model: ModelOption = DEFAULT_MODEL,
    chat: Annotated[
        bool, typer.Option("--chat", help="Ask it as a user's message, through the chat template.")
    ] = False,
    max_tokens: Annotated[int, typer.Option(help="Output tokens at the most.")] = 128,
    temperature: TemperatureOption = 0.0,
    top_p: Annotated[float, typer.Option(help="Nucleus sampling.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same text.")] = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    executor: ExecutorOption = "auto",
    activation_dtype: ActivationDtypeOption = "auto",
    quantization: QuantizationOption = None,
    llm_int8_threshold: ThresholdOption = LLM_INT8_THRESHOLD,
    kv_cache_dtype: KVCacheDtypeOption = "auto",
    num_threads: ThreadsOption = None,
    tensor_parallel_size: TensorParallelOption = 1,
    enforce_eager: EnforceEagerOption = False,
    async_scheduling: AsyncSchedulingOption = None,
) -> None:
    """Complete one prompt.

    Example: `tightpack generate "What is the capital of France?" --chat`
    """
    given = locals()
    from tightpack.async_llm import AsyncLLM

    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    text = sys.stdin.read() if prompt == "-" else prompt
    engine = AsyncLLM(**engine_options(given), max_num_seqs=1)
    try:
        asked: Prompt = chat_prompt(engine, [{"role": "user", "content": text}]) if chat else text
        asyncio.run(print_stream(engine, asked, params))
    finally:
        engine.close()


def chat_prompt(engine: AsyncLLM, messages: list[dict[str, str]]) -> Prompt:
    """The token ids of a conversation, ready for the assistant's turn."""
    rendered = engine.tokenizer.render_chat(messages, add_generation_prompt=True)
    return {"prompt_token_ids": engine.tokenizer.encode(rendered, add_special_tokens=False)}


async def print_stream(engine: AsyncLLM, prompt: Prompt, params: SamplingParams) -> str:
    """Print a completion as it comes; return its text."""
    pieces = []
    async with aclosing(engine.stream(prompt, params)) as deltas:
        async for delta in deltas:
            if delta.error is not None:
                raise ValueError(f"the request failed: {delta.error}")
            pieces.append(delta.text)
            print(delta.text, end="", flush=True)
    print()
    return "".join(pieces)
