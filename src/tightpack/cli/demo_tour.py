"""Runs the tour of `tightpack demo`: loads each precision, prices it, and plays the workload on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Console

from tightpack.benchmarking.comparison import compare_policies
from tightpack.benchmarking.manifest import Conditions, manifest
from tightpack.benchmarking.outcomes import Drive, Progress
from tightpack.benchmarking.policy_run import PolicyRun
from tightpack.benchmarking.report import describe_workload, run_to_json
from tightpack.benchmarking.target import InProcess
from tightpack.benchmarking.tour import traffic
from tightpack.benchmarking.tour.precision_runs import PrecisionRuns
from tightpack.benchmarking.vocabulary import ordinary_token_ids
from tightpack.benchmarking.workload import RequestShape, Workload, build_workload
from tightpack.checkpoints.checkpoint import Checkpoint
from tightpack.checkpoints.open import open_checkpoint
from tightpack.cli.demo_display import DemoDisplay
from tightpack.cli.demo_precisions import ORIGINAL, Precision, precisions, rounded_anew
from tightpack.engine import Engine, load_engine
from tightpack.engine_args import EngineArgs
from tightpack.evaluation.quick_quality import (
    Logarithms,
    QuickQuality,
    compare,
    log_probabilities,
    sample_sequences,
)
from tightpack.scheduling.registry import POLICY_NAMES

_MAX_NUM_SEQS = 8
# Room for the longest prompt of a fast machine; more would only be more KV cache.
_MAX_MODEL_LEN = 4096
# The better of two: another program's burst must not decide how much load there is.
_PROBES, _PROBE_REQUESTS = 2, 24
_PROBE_PROMPTS, _PROBE_PROMPT_LEN, _PROBE_OUTPUT_LEN = 3, 256, 24
_SEQUENCE_LENGTH = 256


class Tour:
    """args: of every engine, but for the precision and what the tour sets itself."""

    def __init__(self, console: Console, args: EngineArgs, *, seconds: float, seed: int) -> None:
        self._console = console
        self._seconds, self._seed = seconds, seed
        self._checkpoint = open_checkpoint(args.model)
        longest = min(_MAX_MODEL_LEN, self._checkpoint.spec.max_position_embeddings)
        self.args = replace(args, max_num_seqs=_MAX_NUM_SEQS, max_model_len=longest)
        self._precisions = precisions(self._checkpoint, self.args)
        self._vocabulary = ordinary_token_ids(self._checkpoint.tokenizer)
        self._sequences = sample_sequences(
            self._checkpoint.tokenizer,
            self._checkpoint.spec.vocab_size,
            min(_SEQUENCE_LENGTH, longest - 1),
        )
        self._reference: list[Logarithms] = []
        self._anew: QuickQuality | None = None
        self._found: list[PrecisionRuns] = []
        self._load: _Load

    def precision(self, name: str) -> Precision:
        return next(one for one in self._precisions if one.name == name)

    def play(self, ask: Callable[[Console, Engine], None]) -> list[PrecisionRuns]:
        """ask: shows that the original is alive, before anything is measured."""
        original, *others = self._precisions
        total = len(POLICY_NAMES) * len(self._precisions)
        with self._engine(original.open()) as engine:
            self._introduce(engine)
            ask(self._console, engine)
            with self._console.status("measuring how fast this machine is"):
                self._load = self._measured_load(engine)
            self._console.print(f"{self._load.workload.description}.")
            self._console.print(self._targets())
            self._console.print()
            display = DemoDisplay(self._console, self._found, runs=total, slots=_MAX_NUM_SEQS)
            with display:
                self._measure(original, engine, display)
        with display:
            for one in others:
                display.say(f"loading {one.name}")
                with self._engine(one.open()) as engine:
                    self._measure(one, engine, display)
            anew = rounded_anew(self._checkpoint)
            if anew is not None and self._sequences:
                display.say("what rounding to 4 bits anew would cost")
                with self._engine(anew) as engine:
                    self._anew = compare(self._reference, self._log_probabilities(engine))
        return self._found

    def notes(self) -> list[str]:
        """What a reader of the table must know and the table has no room for."""
        notes = [
            "* best of its column; latencies and in time: of the interactive requests",
            "– hands over all tokens of a batch together: there are no gaps",
        ]
        quality = self._found[-1].quality
        if quality is not None:
            notes.append(
                f"KL: nats from bf16's next-token distributions, as served, over {quality.tokens} tokens of"
                " English"
            )
        notes += [f"{one.name}: {one.how}" for one in self._precisions if one.how != ORIGINAL]
        if self._anew is not None:
            notes.append(
                f"int4 from a bf16 model, rounded to nearest on loading, costs KL {self._anew.kl:.2g};"
                " tightpack quantize lowers that"
            )
        return notes

    def serve_options(self, policy: str) -> list[str]:
        options = ["--max-num-seqs", str(_MAX_NUM_SEQS)]
        tokens = self._limits[policy]["max_num_batched_tokens"]
        if tokens is not None:
            options += ["--max-num-batched-tokens", str(tokens)]
        if self._load.size.targets_are_stretched:
            chats = self._load.size.interactive
            options += ["--service-class", f"{chats.name}:ttft={chats.ttft_s:g},tpot={chats.tpot_s:g}"]
        return options

    def report(self, found: list[PrecisionRuns]) -> dict[str, Any]:
        """A result a precision, as `tightpack report` reads them."""
        arguments = asdict(self.args)
        conditions = Conditions(_PROBE_REQUESTS, prefix_caching=False, kv_cache_at_start="empty")
        results = []
        for one in found:
            head = manifest(
                model=self._checkpoint.name,
                label=one.name,
                executor=one.executor,
                arguments={
                    **arguments,
                    "seconds": self._seconds,
                    "workload_seed": self._seed,
                    "limits": self._limits,
                },
            )
            results.append(
                {
                    **head,
                    "conditions": asdict(conditions),
                    "precision": one.to_json(),
                    "workload": describe_workload(self._load.workload),
                    "runs": [run_to_json(run) for run in one.runs],
                }
            )
        return {
            "tour": results,
            "rounded_to_int4_anew": None if self._anew is None else asdict(self._anew),
        }

    def _measure(self, precision: Precision, engine: Engine, display: DemoDisplay) -> None:
        display.say(f"{precision.name}: what it costs in quality, what it serves at the most")
        quality = None
        if self._sequences:
            if self._reference:
                quality = compare(self._reference, self._log_probabilities(engine))
            else:
                self._reference = list(self._log_probabilities(engine))
        found = PrecisionRuns(
            precision.name,
            precision.how,
            dict(engine.executor.description),
            getattr(engine.executor, "weight_bytes", None),
            quality,
            self._load.served_per_s if precision is self._precisions[0] else self._served_per_s(engine),
        )
        self._found.append(found)
        target = _target(engine, self._limits)
        compare_policies(target, POLICY_NAMES, [self._load.workload], observer=_Collecting(found, display))

    def _log_probabilities(self, engine: Engine) -> Iterator[Logarithms]:
        return log_probabilities(engine.executor, self._sequences)  # type: ignore[arg-type]

    def _measured_load(self, engine: Engine) -> _Load:
        """See `traffic`: what a prompt and a step take, then what is served of the mix at the most."""
        longest = min(_PROBE_PROMPT_LEN, engine.max_model_len // 2)
        prompts = [RequestShape(0.0, longest, 1)] * (_PROBE_PROMPTS + 1)
        talk = [RequestShape(0.0, 8, _PROBE_OUTPUT_LEN)] * _MAX_NUM_SEQS
        alone = self._drive(engine, prompts, "continuous", max_num_seqs=1)
        full = self._drive(engine, talk, "continuous", max_num_seqs=_MAX_NUM_SEQS)
        pace = traffic.Pace.of(alone.steps[1:], full.steps)  # the first prompt warms the engine up
        size = traffic.Size.of(pace, max_num_seqs=_MAX_NUM_SEQS, max_model_len=engine.max_model_len)
        served = self._served_per_s(engine, size)
        found = traffic.tour_shapes(size, served, self._seconds, self._seed)
        rate = traffic.tour_rate(served)
        words = traffic.describe(size, len(found), rate)
        length = engine.max_model_len
        workload = build_workload(words, found, self._vocabulary, length, self._seed, rate=rate)
        return _Load(size, workload, served)

    def _served_per_s(self, engine: Engine, size: traffic.Size | None = None) -> float:
        """Requests of the mix a second, as many as there can be."""
        size = size or self._load.size
        probe = traffic.probe_shapes(size, _PROBE_REQUESTS, self._seed)
        limits = _limits("chunked-prefill", size)
        return max(
            traffic.served_per_s(self._drive(engine, probe, "chunked-prefill", **limits))
            for _ in range(_PROBES)
        )

    def _drive(self, engine: Engine, found: list[RequestShape], policy: str, **limits: int | None) -> Drive:
        """A short measurement of its own."""
        workload = build_workload("", found, self._vocabulary, engine.max_model_len, f"{self._seed}/probe")
        return _target(engine, {policy: limits}).run(policy, workload)

    @property
    def _limits(self) -> dict[str, dict[str, int | None]]:
        return {policy: _limits(policy, self._load.size) for policy in POLICY_NAMES}

    def _introduce(self, engine: Engine) -> None:
        where = engine.executor.description
        self._console.print(
            f"[bold]{engine.checkpoint.name}[/bold]: {engine.checkpoint.num_parameters / 1e6:.0f}M parameters"
            f" in {self._precisions[0].name} on {where['device']}, ready in"
            f" {sum(engine.load_seconds.values()):.1f} s\n"
        )

    def _targets(self) -> str:
        chats = self._load.size.interactive
        stretched = " (stretched to this machine)" if self._load.size.targets_are_stretched else ""
        return (
            f"Interactive wants its first token within {chats.ttft_s:g} s and the others"
            f" {1000 * (chats.tpot_s or 0):g} ms apart{stretched}; batch only wants to be done."
        )

    @contextmanager
    def _engine(self, checkpoint: Checkpoint) -> Iterator[Engine]:
        engine = load_engine(self.args, checkpoint=checkpoint)
        try:
            yield engine
        finally:
            engine.executor.close()


@dataclass(frozen=True, slots=True)
class _Load:
    """What this machine is measured with."""

    size: traffic.Size
    workload: Workload
    served_per_s: float


def _target(engine: Engine, limits: Mapping[str, Mapping[str, int | None]]) -> InProcess:
    def make_loop(policy: str, **own: Any) -> Any:
        return engine.with_policy(policy, **own).loop

    return InProcess(make_loop, limits)


def _limits(policy: str, size: traffic.Size) -> dict[str, int | None]:
    """The engine arguments of a policy."""
    return {
        "max_num_seqs": _MAX_NUM_SEQS,
        "max_num_batched_tokens": size.chunk if policy == "chunked-prefill" else None,
    }


class _Collecting:
    """Puts each run into what was found, and passes on what the display shows."""

    def __init__(self, found: PrecisionRuns, display: DemoDisplay) -> None:
        self._found, self._display = found, display

    def started(self, policy: str, total: int) -> None:
        self._display.started(policy, total)

    def progressed(self, policy: str, progress: Progress) -> None:
        self._display.progressed(policy, progress)

    def ended(self, run: PolicyRun) -> None:
        self._found.runs.append(run)
        self._display.ended(run)
