"""Benchmark tasks of lm-evaluation-harness, answered by the engine that serves.

Continuations are scored through the requests' own `prompt_logprobs`, so every executor, cache precision and
policy is judged as it would serve.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from tightpack.llm import LLM
from tightpack.requests.prompts import Prompt
from tightpack.requests.sampling_params import SamplingParams

# Of a generation whose task names no length; the harness's own default.
_GENERATED_TOKENS = 256


def evaluate_tasks(
    llm: LLM,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    task_directory: Path | None = None,
) -> dict[str, dict[str, float]]:
    """Task to metric to value, standard errors (`acc_stderr`) included.

    tasks: names, groups (`mmlu`) or globs. limit: of each task, so many documents.
    num_fewshot: examples in the prompt; None for the task's own number.
    task_directory: more tasks, as the harness's YAML files.
    Raises ValueError for a name that is no task.
    """
    manager = TaskManager(include_path=None if task_directory is None else str(task_directory))
    named: list[str] = []
    for pattern in tasks:
        matches = manager.match_tasks([pattern])
        if not matches:
            raise ValueError(f"there is no task {pattern!r} in lm-eval ({len(manager.all_tasks)} are there)")
        named += matches
    found = simple_evaluate(
        EngineLM(llm),
        tasks=named,
        limit=limit,
        num_fewshot=num_fewshot,
        task_manager=manager,
        log_samples=False,
        bootstrap_iters=1000,
    )
    assert found is not None
    return {
        task: {
            # "acc,none": the metric, and the filter of the answers
            metric.removesuffix(",none"): float(value)
            for metric, value in metrics.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        for task, metrics in found["results"].items()
    }


class EngineLM(TemplateLM):  # type: ignore[misc]  # the harness has no types
    """An engine as the harness sees it."""

    def __init__(self, llm: LLM) -> None:
        super().__init__()
        self._llm = llm
        self._tokenizer = llm.get_tokenizer()
        self._longest = llm.engine.max_model_len - 1  # a request must be left one token to generate

    @property
    def eot_token_id(self) -> int:
        return next(iter(self._tokenizer.eos_token_ids), 0)

    @property
    def prefix_token_id(self) -> int:
        first = self._tokenizer.bos_token_id
        return self.eot_token_id if first is None else first

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **unused: Any) -> list[int]:
        return self._tokenizer.encode(string, add_special_tokens=add_special_tokens is not False)

    def _loglikelihood_tokens(
        self, requests: Iterable[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **unused: Any
    ) -> list[tuple[float, bool]]:
        """Sum of log-probabilities of each continuation, and whether greedy decoding would give it."""
        prompts: list[Prompt] = []
        lengths = []
        for _, context, continuation in requests:
            ids = [*context, *continuation][-self._longest :]
            prompts.append({"prompt_token_ids": ids})
            lengths.append(min(len(continuation), len(ids) - 1))
        params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0, ignore_eos=True)
        outputs = self._llm.generate(prompts, params, use_tqdm=not disable_tqdm)
        found = []
        for output, length in zip(outputs, lengths, strict=True):
            if output.prompt_logprobs is None:
                raise RuntimeError(f"a request failed: {output.outputs[0].finish_reason}")
            assert output.prompt_token_ids is not None
            ids = output.prompt_token_ids[len(output.prompt_token_ids) - length :]
            places = output.prompt_logprobs[len(output.prompt_logprobs) - length :]
            scored = [place[token] for place, token in zip(places, ids, strict=True) if place is not None]
            found.append((sum(one.logprob for one in scored), all(one.rank == 1 for one in scored)))
        return found

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, in windows as long as the context, each token once."""
        owners: list[int] = []
        windows = []
        for index, request in enumerate(requests):
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            for pair in get_rolling_token_windows(ids, self.prefix_token_id, self._longest - 1, 1):
                context, continuation = make_disjoint_window(pair)
                owners.append(index)
                windows.append((None, context, continuation))
        totals = [0.0] * len(requests)
        scored = self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm)
        for owner, (logprob, _) in zip(owners, scored, strict=True):
            totals[owner] += logprob
        return totals

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        prompts: list[Prompt] = []
        params = []
        for request in requests:
            context, options = request.args
            sampling = _sampling(options)
            room = max(1, self._longest + 1 - (sampling.max_tokens or 1))
            prompts.append({"prompt_token_ids": self.tok_encode(context)[-room:]})
            params.append(sampling)
        outputs = self._llm.generate(prompts, params, use_tqdm=not disable_tqdm)
        return [output.outputs[0].text for output in outputs]


def _sampling(options: Mapping[str, Any]) -> SamplingParams:
    """The harness's words (transformers' words) in the engine's."""
    until = options.get("until") or ()
    samples = bool(options.get("do_sample", False))
    return SamplingParams(
        max_tokens=int(options.get("max_gen_toks", options.get("max_new_tokens", _GENERATED_TOKENS))),
        temperature=float(options.get("temperature", 1.0)) if samples else 0.0,
        top_p=float(options.get("top_p", 1.0)),
        stop=[until] if isinstance(until, str) else [stop for stop in until if stop],
        seed=0,
    )
