"""`quantize`: a checkpoint in, a smaller one and what it cost out. The place that puts the run, the
evaluation and the engine together."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from tightpack.benchmarking.machine import describe_machine
from tightpack.calibration.config import QuantizationConfig, QuantizationRecipe, config_as_json, resolve
from tightpack.calibration.estimate import Estimate, estimate, peak_memory
from tightpack.calibration.freed_memory import keep_freed_memory
from tightpack.calibration.kv_scales import kv_scale
from tightpack.calibration.layer_walk import Walk
from tightpack.calibration.mix import Mix
from tightpack.calibration.products import has_fast_bfloat16
from tightpack.calibration.report import LinearReport, QuantizationReport
from tightpack.calibration.resume import LayerResult, Progress, fingerprint, saved_layers
from tightpack.calibration.run import LayerRun
from tightpack.calibration.sensitivity import measure as measure_sensitivity
from tightpack.calibration.site_quantizer import wants_hessian
from tightpack.checkpoints.checkpoint import Checkpoint
from tightpack.checkpoints.model_files import refuse_occupied
from tightpack.checkpoints.open import open_checkpoint
from tightpack.checkpoints.quantized_writer import write_quantized
from tightpack.evaluation.comparison import Quality, measure
from tightpack.evaluation.streamed_logits import streamed_logits
from tightpack.llm import LLM
from tightpack.quantization_texts import choose_texts
from tightpack.requests.sampling_params import SamplingParams
from tightpack.schemes.quantized import KVCacheFormat, QuantizedLinear
from tightpack.torch_backend.sizing import resolve_device, resolve_dtype

_SMOKE_PROMPT = "The capital of France is"
_SMOKE_TOKENS = 24


class QualityError(ValueError):
    """A result that is not saved: not finite, or further from the original than asked for."""


class Observer(Protocol):
    """Told how a run goes: `planned` once, `sensitivity` after each layer where precisions are mixed, `layer`
    after each. `phase` names what begins, `note` says what to remember; after one the layers come again, with
    another mix."""

    def phase(self, what: str) -> None: ...

    def note(self, what: str) -> None: ...

    def planned(self, recipe: QuantizationRecipe, expected: Estimate) -> None: ...

    def sensitivity(self, index: int, count: int) -> None: ...

    def layer(self, index: int, count: int, result: LayerResult) -> None: ...


class _Silent:
    def phase(self, what: str) -> None: ...

    def note(self, what: str) -> None: ...

    def planned(self, recipe: QuantizationRecipe, expected: Estimate) -> None: ...

    def sensitivity(self, index: int, count: int) -> None: ...

    def layer(self, index: int, count: int, result: LayerResult) -> None: ...


def quantize(
    model: str,
    output: str | Path,
    config: QuantizationConfig | None = None,
    *,
    calibration: str | Path | None = None,
    evaluation: str | Path | None = None,
    resume: bool = False,
    observer: Observer | None = None,
    **options: Any,
) -> QuantizationReport:
    """Quantize `model` into the directory `output`, and measure it against the original on held-out text.

    config: or its fields as keyword arguments (`options`), for example method="gptq", group_size=64.
    calibration: a text or JSON Lines file, or a data set (see `data_sets.open_text`). The first `samples`
        sequences are calibrated on and the last `evaluation_samples` measured on; None lets the model write
        both itself, from `seed` (int8 is then rounded without).
    evaluation: a text of the same kinds to measure on instead.
    resume: go on with an unfinished run of the same arguments.

    `output` is whole once it exists. Until then progress is in `output`.partial. Raises ValueError for what
    cannot run, and QualityError, with the worst layers, where the result is not finite or its KL divergence
    above `max_kl`; nothing is written then but the progress, so that a resumed run with another max_kl can
    save. Where a mix of precisions aims at `max_kl`, finer ones are tried first, up to four in all."""
    if config is not None and options:
        raise TypeError(f"give config or its fields, not both: {', '.join(options)}")
    config = config or QuantizationConfig(**options)
    observer = observer or _Silent()
    directory = Path(output).expanduser().absolute()
    refuse_occupied(directory)
    progress = Progress(directory.with_name(directory.name + ".partial"))
    if progress.directory.exists() and not resume:
        progress.refuse()
    started = time.perf_counter()
    checkpoint = open_checkpoint(model)
    _refuse_quantized(checkpoint)
    if config.method == "int8" and config.calibrated is None:
        config = replace(config, calibrated=calibration is not None and not checkpoint.spec.is_mixture)
    recipe = resolve(config, checkpoint.spec)
    longest = checkpoint.spec.max_position_embeddings
    if config.sequence_length > longest:
        raise ValueError(
            f"sequence_length={config.sequence_length} is beyond the {longest} positions of {checkpoint.name}"
        )
    device = resolve_device(config.device)
    dtype = _calculation_dtype(recipe.config, checkpoint, device)
    texts = choose_texts(model, checkpoint, recipe, calibration, evaluation, observer.phase)
    seconds = {"text": time.perf_counter() - started}
    observer.planned(recipe, estimate(checkpoint.spec, recipe, len(texts.held_out), dtype, device))
    identity = fingerprint(checkpoint, recipe, texts.calibration)
    progress.resume(identity) if resume else progress.begin(identity)
    walk = Walk(checkpoint, config.sequence_length, dtype, device)
    written = progress.directory / "checkpoint"
    started = time.perf_counter()
    mix = None
    if recipe.config.mixed:
        with _discarding(progress):
            mix = _mix(walk, recipe, texts.calibration, progress, observer)
    seconds |= {"quantize": time.perf_counter() - started, "evaluate": 0.0}
    try:
        while True:
            if mix is not None:
                recipe = replace(recipe, schemes={**recipe.schemes, **mix.schemes})
            started = time.perf_counter()
            with _discarding(progress):
                _run_layers(walk, recipe, texts.calibration, progress, observer)
            seconds["quantize"] += time.perf_counter() - started
            observer.phase("writing")
            shutil.rmtree(written, ignore_errors=True)
            linears = _write(checkpoint, recipe, progress, written)
            observer.phase("measuring quality on held-out text")
            quality = _quality(checkpoint, written, texts.held_out, device)
            seconds["evaluate"] += quality.seconds
            finer = _finer(mix, quality, recipe.config)
            if mix is None or finer is None:
                break
            observer.note(
                f"KL divergence {quality.kl:.4f} is above {config.max_kl:g} with {mix.bits_per_weight:.2f} "
                f"bits a weight: again with {finer.bits_per_weight:.2f}"
            )
            mix = finer
            progress.begin_again(mix.as_json())
        _refuse_poor(quality, linears, recipe.config, progress.directory, mix)
        observer.phase("generating a few tokens")
        smoke = _smoke_test(written, str(config.device))
    except QualityError:
        shutil.rmtree(written, ignore_errors=True)
        raise
    parameters = sum(linear.parameters for linear in linears)
    report = QuantizationReport(
        model=checkpoint.name,
        output=directory.name,
        recipe=recipe.label,
        config=config_as_json(recipe.config),
        calibration_text=texts.calibration_source,
        held_out_text=texts.held_out_source,
        linears=linears,
        quality=dataclasses.asdict(quality),
        smoke_test=smoke,
        seconds=seconds,
        peak_memory_bytes=peak_memory(),
        bits_per_weight=8 * sum(linear.num_bytes for linear in linears) / parameters,
        machine=describe_machine(),
        versions=_versions(),
    )
    (written / "tightpack_report.json").write_text(report.as_json(), encoding="utf-8")
    (written / "README.md").write_text(report.as_readme(), encoding="utf-8")
    if directory.exists():
        directory.rmdir()  # empty: it was looked at before
    written.rename(directory)
    progress.discard()
    return report


@contextmanager
def _discarding(progress: Progress) -> Iterator[None]:
    """What the model or its text made impossible stays so: no progress is kept of it."""
    try:
        yield
    except ValueError:
        progress.discard()
        raise


def _mix(
    walk: Walk,
    recipe: QuantizationRecipe,
    sequences: NDArray[np.int64] | None,
    progress: Progress,
    observer: Observer,
) -> Mix:
    """A precision for each site; sensitivities are measured once a run."""
    stored = progress.load_mix()
    if stored is not None:
        return Mix.from_json(stored)
    assert sequences is not None
    count = walk.spec.num_layers
    measured = measure_sensitivity(walk, recipe, sequences, lambda index: observer.sensitivity(index, count))
    config = recipe.config
    if config.target_bits is not None:
        mix = Mix.within_bits(measured, config.target_bits)
    else:
        assert config.max_kl is not None
        mix = Mix.within_divergence(measured, config.max_kl)
    progress.save_mix(mix.as_json())
    return mix


def _finer(mix: Mix | None, quality: Quality, config: QuantizationConfig) -> Mix | None:
    """What to try where a mix that aims at max_kl misses it."""
    if mix is None or config.target_bits is not None or config.max_kl is None:
        return None
    if quality.kl is None or not quality.is_finite or quality.kl <= config.max_kl:
        return None
    return mix.tightened(quality.kl, config.max_kl)


def _run_layers(
    walk: Walk,
    recipe: QuantizationRecipe,
    sequences: NDArray[np.int64] | None,
    progress: Progress,
    observer: Observer,
) -> None:
    count, first = walk.spec.num_layers, progress.layers_done
    if sequences is not None:
        keep_freed_memory()
    with torch.inference_mode():
        activations = [] if sequences is None else [walk.embed(sequences)]
        if sequences is not None and recipe.corrected_samples:
            activations.append(walk.embed(sequences[: recipe.corrected_samples]))
        if first and activations and first < count:
            progress.restore_activations(activations)
        x, original = (*activations, None, None)[:2]
        copies = [torch.empty_like(tensor) for tensor in activations]
        # The disk's time for a layer passes beside the next one's. However the block is left, what was begun
        # is saved first.
        saved = None
        with ThreadPoolExecutor(1) as beside:
            for index in range(first, count):
                result = LayerRun(walk, recipe, index, x, original).quantize()
                if saved is not None:
                    saved.result()
                for copy, tensor in zip(copies, activations, strict=True):
                    copy.copy_(tensor)
                saved = beside.submit(progress.save, index, result, copies)
                observer.layer(index, count, result)
            if saved is not None:
                saved.result()


def _write(
    checkpoint: Checkpoint, recipe: QuantizationRecipe, progress: Progress, directory: Path
) -> list[LinearReport]:
    count = checkpoint.spec.num_layers
    overrides: dict[str, NDArray[Any]] = {}
    magnitudes: list[tuple[float, float]] = []
    linears = []
    for result in saved_layers(progress, count):
        overrides |= result.tensors
        magnitudes.append((result.key_magnitude, result.value_magnitude))
        for name, linear in result.linears.items():
            outputs, inputs = linear.weight.shape
            linears.append(
                LinearReport(
                    name=name,
                    scheme=result.schemes[name],
                    relative_error=result.errors[name],
                    num_bytes=linear.weight.num_bytes,
                    parameters=outputs * inputs,
                )
            )

    def each() -> Iterator[tuple[str, QuantizedLinear]]:
        for result in saved_layers(progress, count):
            yield from result.linears.items()

    config = recipe.config
    write_quantized(
        checkpoint,
        each(),
        overrides,
        directory,
        layout=config.layout or "compressed-tensors",
        kv_cache_format=_kv_format(config, magnitudes),
    )
    return linears


def _kv_format(config: QuantizationConfig, magnitudes: list[tuple[float, float]]) -> KVCacheFormat | None:
    precision = config.kv_cache_dtype
    if precision == "auto":
        return None
    return KVCacheFormat(
        precision=precision,
        key_scales=tuple(kv_scale(keys, precision) for keys, _ in magnitudes),
        value_scales=tuple(kv_scale(values, precision) for _, values in magnitudes),
    )


def _quality(
    original: Checkpoint,
    written: Path,
    sequences: NDArray[np.int64],
    device: torch.device,
) -> Quality:
    """Of what was written, read back, in float32 whatever it was calibrated in. Layers are streamed, so that
    both models may be larger than memory."""
    judged = open_checkpoint(str(written))
    return measure(
        sequences,
        streamed_logits(judged, sequences, device=device),
        streamed_logits(original, sequences, device=device),
    )


def _refuse_poor(
    quality: Quality,
    linears: list[LinearReport],
    config: QuantizationConfig,
    progress: Path,
    mix: Mix | None,
) -> None:
    assert quality.kl is not None
    worst = sorted(linears, key=lambda linear: -linear.relative_error)[:5]
    named = ", ".join(f"{linear.name} ({linear.scheme}): {linear.relative_error:.3f}" for linear in worst)
    if not quality.is_finite:
        raise QualityError(
            f"the quantized model's logits are not finite; nothing was saved. Largest errors: {named}"
        )
    max_kl = config.max_kl
    if max_kl is not None and quality.kl > max_kl:
        advice = "Leave these in 16 bits with --ignore, take a smaller group or more bits"
        if mix is not None and config.target_bits is None:
            advice = (
                f"{mix.tries} mixes were tried, the last of {mix.bits_per_weight:.2f} bits a weight: start "
                "afresh with more calibration text (--samples) or with --target-bits"
            )
        raise QualityError(
            f"KL divergence {quality.kl:.4f} is above max_kl={max_kl:g}; nothing was saved. Largest relative "
            f"errors: {named}. {advice}, or --resume with a higher --max-kl (progress is in {progress})"
        )


def _smoke_test(directory: Path, device: str) -> dict[str, str]:
    """A greedy continuation by the engine that will serve it. Raises QualityError where it gives none."""
    try:
        llm = LLM(model=str(directory), device=device, max_model_len=64, max_num_seqs=1)
    except MemoryError as error:
        return {"skipped": str(error)}
    try:
        params = SamplingParams(temperature=0, max_tokens=_SMOKE_TOKENS)
        tokens = llm.get_tokenizer().encode(_SMOKE_PROMPT) or [0]
        output = llm.generate({"prompt_token_ids": tokens[:32]}, params, use_tqdm=False)[0].outputs[0]
    finally:
        llm.engine.executor.close()
    if output.finish_reason == "error" or not output.token_ids:
        raise QualityError("the quantized model generates nothing; nothing was saved")
    return {"prompt": _SMOKE_PROMPT, "continuation": output.text}


def _refuse_quantized(checkpoint: Checkpoint) -> None:
    found = checkpoint.quantization
    if found is not None and found.method != "gguf":
        raise ValueError(f"{checkpoint.name} is quantized already ({found.method}); give the original")


def _calculation_dtype(
    config: QuantizationConfig, checkpoint: Checkpoint, device: torch.device
) -> torch.dtype:
    if config.dtype == "auto":
        # Hessians and corrected weights need many tokens, each of little precision; what is chosen by the
        # error of a few outputs needs those exact.
        fast = device.type == "cuda" or (wants_hessian(config) and has_fast_bfloat16())
        return torch.bfloat16 if fast else torch.float32
    return resolve_dtype(config.dtype, checkpoint)


def _versions() -> Mapping[str, str]:
    from importlib.metadata import version

    return {"tightpack": version("tightpack"), "torch": torch.__version__, "numpy": np.__version__}
