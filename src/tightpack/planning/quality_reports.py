"""What was measured of a quantized model's divergence, instead of the defaults by method."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tightpack.planning.weight_choices import KV_DIVERGENCE, WEIGHT_CHOICES, WeightChoice
from tightpack.requests.arguments import nearest_hint

# Methods of `tightpack quantize`, by what they make of the weights; those with --bits are told by it.
_METHODS: Mapping[str, str] = MappingProxyType(
    {"int8": "int8", "smoothquant": "w8a8", "llm.int8": "w8a8", "fp8": "fp8"}
)
_BY_BITS = ("rtn", "awq", "gptq", "awq-gptq")


def divergences(
    choices: Sequence[WeightChoice], reports: Sequence[str]
) -> tuple[list[WeightChoice], dict[tuple[str, str], float]]:
    """The choices with what the reports measured, and (precision, KV type) to the KL to expect.

    reports: files of `tightpack quantize` (tightpack_report.json) or of `tightpack evaluate --json`, or
    PRECISION=FILE where a file does not say what it measured. A measured divergence stands for the weights;
    of a checkpoint with a quantized cache, for both together. Raises OSError, and ValueError naming the file.
    """
    by_name = {choice.name: choice for choice in choices}
    together: dict[tuple[str, str], float] = {}
    for given in reports:
        name, kv, kl, checkpoint = _read(given)
        if name not in by_name:
            raise ValueError(
                f"--quality-report {given}: it is about {name}, and the plan considers {', '.join(by_name)}"
            )
        if kv != "auto":
            together[name, kv] = kl
            continue
        changes: dict[str, Any] = {"kl": kl, "source": given}
        if checkpoint is not None:
            changes |= {"checkpoint": checkpoint, "option": None, "method": None}
        by_name[name] = replace(by_name[name], **changes)
    found = {
        (choice.name, kv): together.get((choice.name, kv), choice.kl + extra)
        for choice in by_name.values()
        for kv, extra in KV_DIVERGENCE.items()
    }
    return list(by_name.values()), found


def _read(given: str) -> tuple[str, str, float, str | None]:
    """Precision, KV type, KL, and the checkpoint that has them, where it was made for keeps."""
    name, equals, path = given.partition("=")
    if not equals:
        name, path = "", given
    elif name not in WEIGHT_CHOICES:
        raise ValueError(f"--quality-report {given}: {nearest_hint(name, WEIGHT_CHOICES, 'precisions are')}")
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no report: {error}") from None
    if not isinstance(report, dict):
        raise ValueError(f"{path} is no report of `tightpack quantize` or `tightpack evaluate --json`")
    quality = report.get("quality", report)  # evaluate has the figures at the top
    kl = quality.get("kl") if isinstance(quality, dict) else None
    if not isinstance(kl, int | float) or isinstance(kl, bool) or kl < 0:
        raise ValueError(f"{path} has no KL divergence; `tightpack evaluate` measures it with --reference")
    config = report.get("config")
    if not isinstance(config, dict):
        if not name:
            raise ValueError(
                f"{path} does not say what was measured; write PRECISION={path}, such as int4={path}"
            )
        return name, "auto", float(kl), None
    method = str(config.get("method"))
    if not name:
        name = _METHODS.get(method, f"int{config.get('bits') or 4}" if method in _BY_BITS else "")
    if name not in WEIGHT_CHOICES:
        raise ValueError(f"{path}: method {method!r} is none of the precisions {', '.join(WEIGHT_CHOICES)}")
    kv = str(config.get("kv_cache_dtype") or "auto")
    return name, kv if kv in KV_DIVERGENCE else "auto", float(kl), report.get("output")
