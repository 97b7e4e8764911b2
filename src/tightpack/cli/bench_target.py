"""Opens what `tightpack bench` measures: a model in this process, or a server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tightpack.benchmarking.target import Target
from tightpack.cli.bench_plan import Plan
from tightpack.cli.options import engine_options


@dataclass(frozen=True, slots=True)
class Opened:
    """A target, and what a report says of it.

    label: its name beside other results. vocabulary: the token ids that prompts are drawn from.
    fresh_prompts: whether runs need prompts that it has not seen, because it may remember them.
    warms_up: whether its first requests may be slower than those that follow.
    """

    target: Target
    name: str
    label: str
    where: str
    executor: Mapping[str, str]
    vocabulary: Sequence[int]
    max_model_len: int
    prefix_caching: bool | None
    fresh_prompts: bool
    warms_up: bool = True


@contextmanager
def open_engine(arguments: Mapping[str, Any], plan: Plan) -> Iterator[Opened]:
    """The model, loaded once for all policies."""
    from tightpack.benchmarking.target import InProcess
    from tightpack.benchmarking.vocabulary import ordinary_token_ids
    from tightpack.engine import load_engine
    from tightpack.engine_args import EngineArgs

    engine = load_engine(
        EngineArgs(
            **engine_options(arguments),
            max_model_len=plan.max_model_len,
            max_num_seqs=plan.max_num_seqs,
            max_queue=max(1024, plan.num_requests),
        )
    )

    def make_loop(policy: str, **limits: Any) -> Any:
        return engine.with_policy(policy, **limits).loop

    executor = engine.executor.description
    quantization = executor.get("quantization", "none")
    # PyTorch computes with a GGUF file in its dtype.
    unquantized = ("none", "gguf") if executor["backend"] == "torch" else ("none",)
    try:
        yield Opened(
            target=InProcess(make_loop, plan.limits),
            name=engine.checkpoint.name,
            label=executor["dtype"] if quantization in unquantized else quantization,
            where="local",
            executor=executor,
            vocabulary=ordinary_token_ids(engine.checkpoint.tokenizer),
            max_model_len=engine.max_model_len,
            prefix_caching=bool(arguments["enable_prefix_caching"]),
            fresh_prompts=False,
        )
    finally:
        engine.executor.close()


@contextmanager
def open_server(arguments: Mapping[str, Any], plan: Plan, api_key: str | None) -> Iterator[Opened]:
    """Asks the server for its models. Raises OSError where none answers, ValueError for a model it lacks."""
    from tightpack.benchmarking.openai_api import ORDINARY_TOKENS, Server, served_models
    from tightpack.benchmarking.remote import Remote

    url, wanted = arguments["url"], arguments["served_model"]
    server = Server(url, wanted or "", arguments["endpoint"], arguments["ignore_eos"], api_key)
    models = {one["id"]: one for one in served_models(server)}
    if wanted is None and len(models) != 1:
        raise ValueError(f"{url} serves {', '.join(models) or 'no model'}; name one with --model")
    name = wanted or next(iter(models))
    if name not in models:
        raise ValueError(f"{url} serves no model {name!r}; it serves {', '.join(models)}")
    length = plan.max_model_len or models[name].get("max_model_len")
    yield Opened(
        target=Remote(Server(url, name, server.endpoint, server.ignore_eos, api_key)),
        name=name,
        label=arguments["label"] or "server",
        where=url,
        executor={"backend": "server", "device": url},
        vocabulary=ORDINARY_TOKENS,
        # A server that does not tell is left to refuse what is too long for it.
        max_model_len=length or 2**31,
        prefix_caching=None,
        fresh_prompts=True,
    )
