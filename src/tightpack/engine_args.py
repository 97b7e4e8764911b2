"""Engine arguments under vLLM's names, and their "auto" values resolved for a model and a machine."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from tightpack.architectures.model_spec import ModelSpec
from tightpack.requests.arguments import as_float, as_int, refuse_unknown, require_one_of, strict_keywords
from tightpack.requests.service_class import ServiceClass
from tightpack.requests.service_class_settings import SERVICE_CLASSES, resolve_service_classes
from tightpack.scheduling.limits import SchedulerLimits
from tightpack.scheduling.registry import POLICY_NAMES

DEFAULT_MODEL = "smollm2-135m"
DTYPES = ("auto", "bfloat16", "float16", "float32")
DEVICES = ("auto", "cpu", "cuda")
EXECUTORS = ("auto", "native", "torch")
ACTIVATION_DTYPES = ("auto", "int8", "bfloat16")
KV_CACHE_DTYPES = (*DTYPES, "fp8", "fp8_e4m3", "int8")
# What a checkpoint may be, and what an unquantized one can become as it is loaded.
CHECKPOINT_METHODS = ("awq", "gptq", "compressed-tensors", "fp8", "bitsandbytes", "gguf")
ON_LOAD_METHODS = ("int8", "w8a8", "llm.int8", "int4", "fp8")
QUANTIZATIONS = tuple(dict.fromkeys((*CHECKPOINT_METHODS, *ON_LOAD_METHODS)))
# vLLM's names for a format together with one of its kernels; here the kernel follows from the device.
_KERNEL_NAMES = MappingProxyType({"awq_marlin": "awq", "gptq_marlin": "gptq"})
# What attends on CUDA; vLLM's names for the same are taken too.
ATTENTION_BACKENDS = ("auto", "triton", "flashinfer")
_ATTENTION_NAMES = MappingProxyType({"triton_attn": "triton"})
LLM_INT8_THRESHOLD = 6.0
# Prompt tokens that share a step with the decodes under chunked prefill. A CPU computes one to two thousand
# prompt tokens a second, so 256 keep the others' gap near 0.2 s; a GPU needs more to be busy.
CHUNK_BUDGET = {"cpu": 256, "cuda": 2048}
# Under slo the step's predicted time sets the budget; this only bounds the memory of its activations.
SLO_BUDGET = {"cpu": 1024, "cuda": 8192}

_INTEGERS = (
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_model_len",
    "block_size",
    "num_blocks",
    "seed",
    "max_queue",
    "num_threads",
    "tensor_parallel_size",
    "prompt_graph_tokens",
)
# The smallest value of an integer, None for any, where it is not 1.
_LEAST = MappingProxyType({"seed": None, "prompt_graph_tokens": 0})


@strict_keywords
@dataclass(frozen=True, slots=True, kw_only=True)
class EngineArgs:
    """What an engine is made from. What is None or "auto" is chosen by `resolve_limits` and the executor.

    model: the bundled "smollm2-135m", a Hugging Face directory, a GGUF file or a hub id.
    served_model_name: the name clients use; the model's own when None.
    dtype: of weights and activations; "auto" is float16 for a checkpoint stored so, else bfloat16.
    device: "auto" takes CUDA where there is one.
    executor: "native" is the C++ one for CPUs, "torch" PyTorch's. "auto" is native on a CPU; what it lacks
        (dtype="float32" for one) goes to PyTorch, with a warning that says why.
    activation_dtype: of the native executor, how inputs of linears are rounded where the checkpoint says
        nothing of it. "auto" and "int8": int8 with a scale a token and group of at most 64 where weights are
        integers, else bfloat16. "bfloat16": bfloat16 everywhere, as PyTorch computes.
    quantization: what the checkpoint's quantization must be ("awq", "gptq", "compressed-tensors", "fp8",
        "bitsandbytes", "gguf"), or how to quantize an unquantized one on loading: "int8" (weights alone, a
        scale a channel), "w8a8" (and int8 activations, a scale a token), "llm.int8", "int4" (weights alone,
        round to nearest in groups), "fp8" (a scale a channel, and FP8 activations with a scale a token). The
        embedding and the head stay as they are. vLLM's "awq_marlin" and "gptq_marlin" are "awq" and "gptq".
        None takes the checkpoint as it is.
    llm_int8_threshold: activations of at least this magnitude stay in 16 bits under "llm.int8".
    kv_cache_dtype: "auto" takes the checkpoint's, or else dtype. "fp8" is E4M3 with the checkpoint's
        calibrated scales, or scale 1; "int8" has those, or a scale for each token and head.
    gpu_memory_utilization: the share of the device's memory that weights, activations and KV cache may fill.
    max_num_seqs: requests a step at the most (the batch size of `static` and `dynamic`).
    max_num_batched_tokens: tokens a step at the most.
    max_model_len: prompt and output tokens of a request at the most.
    block_size: positions a KV block.
    num_blocks: KV blocks; None sizes the pool by memory.
    seed: of the seeds drawn for requests that bring none.
    enable_prefix_caching: share the KV blocks of equal prompt beginnings.
    policy: static, dynamic, continuous, chunked-prefill or slo.
    service_classes: the latency targets and shares of interactive, standard and batch, as
        `resolve_service_classes` takes them: {"interactive": {"ttft": 0.3}}, or texts.
    reject_unattainable: refuse a request whose TTFT target cannot be met now (slo only).
    max_wait: seconds that `dynamic` holds its oldest request for company, and that `static` waits for the
        next arrival before a partial batch leaves.
    max_queue: waiting requests at the most; one more is refused.
    num_threads: CPU threads; None takes one a physical core.
    tensor_parallel_size: processes that divide the model, each with a GPU of its own, or with a share of the
        CPU's cores; PyTorch's executor only.
    enforce_eager: record no CUDA graphs, neither of decode steps nor of pieces of others.
    prompt_graph_tokens: on CUDA, steps with prompt tokens run in recorded pieces up to this many tokens; 0
        for none. Large steps gain little: a layer's products last longer than their launches take.
    attention_backend: on CUDA, whose kernel attends in steps with prompt tokens: "triton" is this project's,
        "flashinfer" FlashInfer's, "auto" the faster of the two where FlashInfer is installed. Case does not
        count, and vLLM's "TRITON_ATTN" is "triton".
    async_scheduling: plan and launch the next step while the device computes one; PyTorch's executor only.
        None does so on CUDA, with one rank.
    """

    model: str = DEFAULT_MODEL
    served_model_name: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    executor: str = "auto"
    activation_dtype: str = "auto"
    quantization: str | None = None
    llm_int8_threshold: float = LLM_INT8_THRESHOLD
    kv_cache_dtype: str = "auto"
    gpu_memory_utilization: float = 0.90
    max_num_seqs: int = 32
    max_num_batched_tokens: int | None = None
    max_model_len: int | None = None
    block_size: int = 16
    num_blocks: int | None = None
    seed: int = 0
    enable_prefix_caching: bool = True
    policy: str = "chunked-prefill"
    max_wait: float | None = None
    max_queue: int = 1024
    service_classes: tuple[ServiceClass, ...] = SERVICE_CLASSES
    reject_unattainable: bool = False
    num_threads: int | None = None
    tensor_parallel_size: int = 1
    enforce_eager: bool = False
    prompt_graph_tokens: int = 512
    attention_backend: str = "auto"
    async_scheduling: bool | None = None

    def __post_init__(self) -> None:
        for name in _INTEGERS:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, as_int(name, getattr(self, name)))
        for name in ("llm_int8_threshold", "gpu_memory_utilization", "max_wait"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, as_float(name, getattr(self, name)))
        require_one_of("dtype", self.dtype, DTYPES)
        require_one_of("device", self.device, DEVICES)
        require_one_of("executor", self.executor, EXECUTORS)
        require_one_of("activation_dtype", self.activation_dtype, ACTIVATION_DTYPES)
        require_one_of("kv_cache_dtype", self.kv_cache_dtype, KV_CACHE_DTYPES)
        backend = self.attention_backend.lower()
        object.__setattr__(self, "attention_backend", _ATTENTION_NAMES.get(backend, backend))
        require_one_of("attention_backend", self.attention_backend, ATTENTION_BACKENDS)
        if self.quantization is not None:
            method = _KERNEL_NAMES.get(self.quantization, self.quantization)
            object.__setattr__(self, "quantization", method)
            require_one_of("quantization", self.quantization, QUANTIZATIONS)
        if not 0 < self.llm_int8_threshold < float("inf"):
            raise ValueError(f"llm_int8_threshold must be above 0, got {self.llm_int8_threshold}")
        if self.llm_int8_threshold != LLM_INT8_THRESHOLD and self.quantization != "llm.int8":
            raise ValueError("llm_int8_threshold has a meaning with quantization='llm.int8' only")
        require_one_of("policy", self.policy, POLICY_NAMES)
        object.__setattr__(self, "service_classes", resolve_service_classes(self.service_classes))
        if self.reject_unattainable and self.policy != "slo":
            raise ValueError(
                f"reject_unattainable needs policy='slo', which predicts when a first token comes; policy="
                f"{self.policy!r} does not"
            )
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(f"gpu_memory_utilization must be in (0, 1], got {self.gpu_memory_utilization}")
        for name in _INTEGERS:
            value = getattr(self, name)
            least = _LEAST.get(name, 1)
            if least is not None and value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if self.max_wait is not None and self.max_wait < 0:
            raise ValueError(f"max_wait must be 0 seconds or more, got {self.max_wait}")

    @classmethod
    def from_keywords(cls, owner: str, keywords: dict[str, Any]) -> EngineArgs:
        """Build from the keyword arguments of `owner`, whose name an error carries."""
        refuse_unknown(owner, keywords, [field.name for field in dataclasses.fields(cls)])
        return cls(**keywords)


def resolve_max_model_len(args: EngineArgs, spec: ModelSpec) -> int:
    """The context length: the model's own, or less when asked; more is an error."""
    longest = spec.max_position_embeddings
    if args.max_model_len is None:
        return longest
    if args.max_model_len > longest:
        raise ValueError(
            f"max_model_len={args.max_model_len} is beyond the {longest} positions of {args.model}"
        )
    return args.max_model_len


def resolve_max_num_batched_tokens(args: EngineArgs, max_model_len: int, device: str) -> int:
    """Tokens a step, chosen to suit the policy when not given. device: "cpu" or "cuda"."""
    if args.max_num_batched_tokens is not None:
        return args.max_num_batched_tokens
    if args.policy == "chunked-prefill":
        return max(CHUNK_BUDGET[device], args.max_num_seqs)
    if args.policy == "slo":
        return max(SLO_BUDGET[device], args.max_num_seqs)
    # Whole-prompt policies must take the longest prompt beside every running decode.
    return max_model_len + args.max_num_seqs


def resolve_limits(args: EngineArgs, max_model_len: int, num_blocks: int, device: str) -> SchedulerLimits:
    """The scheduler's capacities, with every choice made."""
    max_wait = args.max_wait
    if max_wait is None:
        max_wait = 1.0 if args.policy == "static" else 0.05
    return SchedulerLimits(
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=resolve_max_num_batched_tokens(args, max_model_len, device),
        max_model_len=max_model_len,
        block_size=args.block_size,
        num_blocks=num_blocks,
        max_queue=args.max_queue,
        max_wait=max_wait,
        enable_prefix_caching=args.enable_prefix_caching,
        reject_unattainable=args.reject_unattainable,
    )
