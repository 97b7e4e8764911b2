"""Fixtures that several folders share: the bundled model, loaded once; tiny random checkpoints and texts;
requests, and a scheduler without decisions."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tightpack import LLM
from tightpack.engine_args import EngineArgs
from tightpack.requests.request import Request
from tightpack.requests.sampling_params import SamplingParams
from tightpack.scheduling.plan import Chunk
from tightpack.serving_loop.executor import Executor

# Triton reads this when it is first imported, which PyTorch may do in any test.
os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--executor",
        choices=("auto", "native", "torch"),
        default="auto",
        help="What engines of tests that name no executor run on.",
    )


def pytest_configure(config: pytest.Config) -> None:
    chosen = config.getoption("--executor")
    if chosen != "auto":
        EngineArgs.__init__.__wrapped__.__kwdefaults__["executor"] = chosen  # type: ignore[attr-defined]
        os.environ["TIGHTPACK_EXECUTOR"] = chosen  # for commands


@pytest.fixture(scope="session")
def llm(request: pytest.FixtureRequest) -> Iterator[LLM]:
    """SmolLM2; on PyTorch in fp32, where greedy tokens do not hang on the order of a sum."""
    dtype = "float32" if request.config.getoption("--executor") == "torch" else "auto"
    engine = LLM(model="smollm2-135m", dtype=dtype, max_model_len=512, max_num_seqs=8, num_blocks=256)
    yield engine
    engine.engine.executor.close()


TINY_VOCABULARY = 96
TINY: dict[str, Any] = {
    "vocab_size": TINY_VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TINY_GEMMA: dict[str, Any] = {
    "head_dim": 16,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 16,
    "sliding_window": 9,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A family's name to a directory with a random bf16 checkpoint of three layers, made once."""
    made: dict[str, Path] = {}

    def get(family: str = "llama") -> Path:
        if family not in made:
            made[family] = _save_tiny_model(tmp_path_factory.mktemp(family), family)
        return made[family]

    return get


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,200 words of the tiny models' vocabulary, each narrowing the next, so that inputs are correlated."""
    draw, word, words = random.Random(0), 5, []
    for _ in range(1200):
        word = (word * 7 + draw.choice((1, 2, 3))) % (TINY_VOCABULARY - 4) + 4
        words.append(f"w{word}")
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(" ".join(words), encoding="utf-8")
    return path


def _save_tiny_model(directory: Path, family: str) -> Path:
    """Norms, biases and scores lie away from what they start as."""
    import tokenizers
    import torch
    import transformers

    configs: dict[str, Callable[[], Any]] = {
        "llama": lambda: transformers.LlamaConfig(**TINY, tie_word_embeddings=True),
        "mistral": lambda: transformers.MistralConfig(**TINY, sliding_window=7, head_dim=16),
        "qwen2": lambda: transformers.Qwen2Config(**TINY),
        "qwen3": lambda: transformers.Qwen3Config(**TINY, head_dim=32),
        "gemma3": lambda: transformers.Gemma3TextConfig(**{**TINY, **TINY_GEMMA}),
        "mixtral": lambda: transformers.MixtralConfig(**TINY, num_local_experts=4),
        "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
            **TINY,
            head_dim=32,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=64,
            norm_topk_prob=True,
            mlp_only_layers=[1],
        ),
    }
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(configs[family]()).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(torch.randn_like(tensor) * (0.2 if tensor.dim() == 1 else 0.1))
    model.to(torch.bfloat16).save_pretrained(directory)
    words = {f"w{token}": token for token in range(TINY_VOCABULARY)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture(scope="session")
def make_request() -> Callable[..., Request]:
    """Greedy unless told otherwise; keywords are those of SamplingParams."""

    def make(tokens: Sequence[int], name: str = "request", **params: Any) -> Request:
        sampling = {"temperature": 0.0, "max_tokens": 64} | params
        return Request(
            request_id=name,
            prompt_token_ids=tuple(tokens),
            params=SamplingParams(**sampling),
            seed=sampling.get("seed") or 0,
            max_output_tokens=64,
        )

    return make


class Sequencer:
    """Hands out an executor's blocks, shuffled, and makes the chunks of requests: no scheduler is needed."""

    def __init__(self, executor: Executor, seed: int = 0) -> None:
        self.block_size = executor.block_size
        self.free = list(range(executor.num_blocks))
        random.Random(seed).shuffle(self.free)
        self.tables: dict[Request, list[int]] = {}

    def chunk(self, request: Request, count: int | None = None) -> Chunk:
        """The request's next `count` tokens (all that are known); advances it as a commit would."""
        first = request.num_computed_tokens
        count = len(request.token_ids) - first if count is None else count
        table = self.tables.setdefault(request, [])
        while len(table) * self.block_size < first + count:
            table.append(self.free.pop())
        request.num_computed_tokens = first + count
        return Chunk(request, first, count, tuple(table))

    def release(self, request: Request) -> None:
        """The blocks come back first: the next request gets them with what is in them."""
        self.free += self.tables.pop(request)


@pytest.fixture(scope="session")
def sequencer() -> type[Sequencer]:
    return Sequencer
