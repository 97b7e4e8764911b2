"""Which executor runs what, and what is said when it is not the one for CPUs."""

from __future__ import annotations

import logging
import subprocess
import sys
from dataclasses import replace

import pytest

from tightpack import executors
from tightpack.engine_args import EngineArgs
from tightpack.executors import make_executor
from tightpack.native_cpu.support import reason_against


@pytest.fixture
def backend(tiny_model, caplog):
    """Engine arguments to the backend that runs them; what was logged is in caplog."""
    from tightpack.checkpoints.open import open_checkpoint

    checkpoint = open_checkpoint(str(tiny_model("llama")))

    def of(**arguments):
        given = {"executor": "auto", "num_blocks": 8, "num_threads": 1} | arguments
        with caplog.at_level(logging.WARNING):
            executor = make_executor(checkpoint, EngineArgs(**given), 128)
        executor.close()
        return executor.description["backend"]

    return of


def test_native_on_a_cpu(backend, caplog):
    assert backend() == "native"
    assert backend(dtype="bfloat16", device="cpu", kv_cache_dtype="fp8", block_size=32) == "native"
    assert backend(executor="native", activation_dtype="bfloat16") == "native"
    assert not caplog.records


@pytest.mark.parametrize("executor", ["native", "torch"])
def test_more_than_the_machine_has_is_refused_at_once(backend, executor):
    with pytest.raises(ValueError, match=r"num_threads=100000 are more than the \d+ CPUs"):
        backend(executor=executor, num_threads=100_000)
    with pytest.raises(
        MemoryError, match=r"num_blocks=10000000000 take .* GiB are free; \d+ would fill them"
    ):
        backend(executor=executor, num_blocks=10**10)


LACKING = [
    ({"dtype": "float32"}, "it computes in bfloat16, not in dtype='float32'"),
    ({"dtype": "float16"}, "it computes in bfloat16, not in dtype='float16'"),
    (
        {"kv_cache_dtype": "float32"},
        "its KV cache is bfloat16, fp8 or int8, not kv_cache_dtype='float32'",
    ),
    ({"block_size": 8}, "its KV blocks are multiples of 16 positions, not block_size=8"),
]


@pytest.mark.parametrize(("arguments", "reason"), LACKING)
def test_what_native_lacks_goes_to_pytorch_with_one_word(backend, caplog, arguments, reason):
    assert backend(**arguments) == "torch"
    [record] = caplog.records
    assert record.message.startswith("PyTorch runs llama")
    assert record.message.endswith(f"the native executor cannot: {reason}")
    with pytest.raises(ValueError, match=r"executor='native' cannot run llama\d+: " + reason[:20]):
        backend(executor="native", **arguments)


def test_pytorch_by_choice_needs_no_word(backend, caplog):
    assert backend(executor="torch") == "torch"
    assert not caplog.records


def test_the_attention_backend_is_a_gpus(backend):
    """vLLM's spelling is taken, in any case."""
    assert backend(attention_backend="AUTO") == "native"
    for name, meant in (("TRITON_ATTN", "triton"), ("FLASHINFER", "flashinfer")):
        with pytest.raises(ValueError, match=f"attention_backend='{meant}' chooses among a GPU's kernels"):
            backend(attention_backend=name, device="cpu")
    with pytest.raises(ValueError, match="attention_backend='flashinfre' is not known"):
        backend(attention_backend="flashinfre")


def test_int8_activations_are_natives(backend):
    with pytest.raises(ValueError, match="activation_dtype='int8' is the native executor's"):
        backend(executor="torch", activation_dtype="int8")


def test_odd_heads(tiny_model):
    from tightpack.checkpoints.open import open_checkpoint

    checkpoint = open_checkpoint(str(tiny_model("llama")))
    for size in (15, 258):
        odd = replace(checkpoint, spec=replace(checkpoint.spec, head_dim=size))
        reason = reason_against(odd, dtype="auto", kv_cache_dtype="auto", block_size=16)
        assert reason == f"its heads have an even number of dimensions up to 256, not {size}"


def test_a_gpu_is_pytorchs(backend, monkeypatch, caplog):
    made = []
    monkeypatch.setattr(executors, "_torch", lambda *given: made.append(given) or _Closed())
    monkeypatch.setattr(executors, "_on_cuda", lambda device: True)
    assert backend() == "fake"
    [(_, _, _, reason)] = made
    assert reason is None
    assert not caplog.records
    with pytest.raises(ValueError, match="it computes on CPUs alone"):
        backend(executor="native")


class _Closed:
    description = {"backend": "fake"}  # noqa: RUF012

    def close(self):
        pass


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="executor='nativ' is not known; did you mean 'native'"):
        EngineArgs(executor="nativ")
    with pytest.raises(ValueError, match="activation_dtype='int4' is not known"):
        EngineArgs(activation_dtype="int4")


def test_a_cpu_needs_no_pytorch():
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from tightpack import LLM, SamplingParams\n"
        "llm = LLM(max_model_len=64, num_blocks=8, quantization='int4', num_threads=1)\n"
        "[out] = llm.generate(['The capital of France is'], SamplingParams(temperature=0, max_tokens=4),"
        " use_tqdm=False)\n"
        "print(llm.engine.executor.description['backend'], len(out.outputs[0].token_ids))\n"
        "assert 'transformers' not in sys.modules\n"
        "from dataclasses import asdict\n"
        "try: LLM(dtype='float32')\n"
        "except ModuleNotFoundError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == "native 4"
    assert "runs on PyTorch (it computes in bfloat16, not in dtype='float32')" in lines[1]
    assert "pip install 'tightpack[torch]'" in lines[1]


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_a_mixture_needs_no_pytorch(tiny_model, family):
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from tightpack import LLM, SamplingParams\n"
        f"llm = LLM({str(tiny_model(family))!r}, num_blocks=8, quantization='int4', num_threads=1)\n"
        "[out] = llm.generate(['w5 w6 w7'], SamplingParams(temperature=0, max_tokens=4, ignore_eos=True),"
        " use_tqdm=False)\n"
        "print(llm.engine.executor.description['backend'], len(out.outputs[0].token_ids))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "native 4\n"
