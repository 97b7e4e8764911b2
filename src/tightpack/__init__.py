"""tightpack: quantize, batch and serve language models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tightpack.async_llm import AsyncLLM
    from tightpack.calibration.config import QuantizationConfig
    from tightpack.llm import LLM
    from tightpack.quantization import quantize
    from tightpack.requests.sampling_params import SamplingParams

__all__ = ["LLM", "AsyncLLM", "QuantizationConfig", "SamplingParams", "quantize"]

_HOMES = {
    "LLM": "tightpack.llm",
    "AsyncLLM": "tightpack.async_llm",
    "QuantizationConfig": "tightpack.calibration.config",
    "quantize": "tightpack.quantization",
    "SamplingParams": "tightpack.requests.sampling_params",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use, so that importing one of the small packages stays free of the large ones.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'tightpack' has no attribute {name!r}")
