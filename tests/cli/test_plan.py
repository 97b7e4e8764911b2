from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tightpack.cli.main import app
from tightpack.simulated.fitted import AttentionCost, FittedCostModel

SMALL = (
    *("--input-len", "256", "--output-len", "4", "--fixed", "--policies", "continuous", "--quiet"),
    *("--tensor-parallel-size", "1", "--kv-cache-dtype", "auto"),
)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["plan", *arguments], catch_exceptions=False)


@pytest.fixture
def this_machine(tmp_path: Path) -> Path:
    """A fit as `calibrate-cost` writes it, of a machine that takes 10 ms a step and 0.2 ms a prompt token."""
    attention = AttentionCost(
        window=None, decode_position_s=0, prompt_position_s=0, own_pair_s=0, cached_pair_s=0
    )
    fit = FittedCostModel(
        token_counts=(1, 1024),
        step_s=(0.01, 0.21),
        sampling_s=0,
        sample_s=0,
        decoding_s=0,
        decode_s=0,
        prompt_s=0,
        attention=(attention,),
        manifest={
            "model": "smollm2-135m",
            "arguments": {"num_threads": 2, "kv_cache_dtype": "auto", "quantization": None},
            "executor": {"backend": "native"},
            "limits": {
                "max_num_seqs": 8,
                "max_num_batched_tokens": 1032,
                "positions": 1024,
                "block_size": 16,
                "num_blocks": 512,
            },
        },
    )
    path = tmp_path / "fit.json"
    path.write_text(fit.to_json())
    return path


def test_a_plan_says_what_fits_what_is_best_and_how_to_serve_it(tmp_path: Path):
    output, page = tmp_path / "plan.json", tmp_path / "plan.html"
    done = run(
        *("--model", "llama-3.1-8b", "--rate", "4", "--hardware", "l4,h100", "--precision", "bf16,fp8"),
        *("--json", str(output), "--html", str(page), *SMALL),
    )
    assert done.exit_code == 0, done.output
    assert "Will it fit" in done.output
    plan = json.loads(output.read_text())
    assert plan["model"] == "llama-3.1-8b"
    first = plan["fits"][0]
    assert list(first) == [
        *("hardware", "precision", "kv_cache_dtype", "weights_bytes", "kv_bytes_per_token"),
        *("devices", "max_tokens_in_cache"),
    ]
    assert {fit["hardware"] for fit in plan["fits"]} == {"l4", "h100-sxm"}
    wanted = {"policy", "tensor_parallel_size", "replicas", "goodput_rps", "attainment", "meets_slo"}
    wanted |= {"hardware", "precision", "kv_cache_dtype", "usd_per_million_output_tokens"}
    assert all(wanted <= set(one) for one in plan["candidates"])
    best = plan["best"]
    assert best["meets_slo"]
    assert best["serve_command"] in done.output
    assert best["serve_command"].startswith("tightpack serve meta-llama/Llama-3.1-8B-Instruct")
    assert best["capacity_rps"] >= 4
    prices = [one["usd_per_hour"] for one in plan["candidates"] if one["meets_slo"]]
    assert best["usd_per_hour"] == min(prices)
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_the_same_plan_comes_out_twice(tmp_path: Path):
    arguments = ("--model", "llama-3.1-8b", "--rate", "4", "--hardware", "l4", "--precision", "fp8", *SMALL)
    assert run(*arguments).output == run(*arguments).output


def test_a_trace_brings_its_lengths_and_rate(tmp_path: Path):
    trace = tmp_path / "trace.csv"
    rows = [f"{i * 0.5},{100 + i % 7},{8 + i % 3}" for i in range(400)]
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(rows) + "\n")
    output = tmp_path / "plan.json"
    done = run(
        *("--model", "llama-3.2-1b", "--trace", str(trace), "--hardware", "l4", "--precision", "bf16"),
        *("--policies", "continuous", "--json", str(output), "--quiet"),
    )
    assert done.exit_code == 0, done.output
    load = json.loads(output.read_text())["load"]
    assert load["rate_rps"] == pytest.approx(2.0)
    assert load["mean_input_tokens"] == pytest.approx(103, abs=1)


def test_prices_are_yours(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text("l4: {usd_per_hour: 50}\n")
    output = tmp_path / "plan.json"
    base = (
        "--model",
        "llama-3.1-8b",
        "--rate",
        "8",
        "--hardware",
        "l4,h100-sxm",
        "--precision",
        "fp8",
        *SMALL,
    )
    for changes, cheapest in (((), "l4"), (("--hardware-file", str(file)), "h100-sxm")):
        assert run(*base, *changes, "--json", str(output)).exit_code == 0
        assert json.loads(output.read_text())["best"]["hardware"] == cheapest
    assert run(*base, "--price", "h100=0.01", "--json", str(output)).exit_code == 0
    assert json.loads(output.read_text())["best"]["usd_per_hour"] == 0.01


def test_this_machine_is_planned_for_as_it_was_measured(this_machine: Path, tmp_path: Path):
    output = tmp_path / "plan.json"
    done = run(
        *(
            "--model",
            "smollm2-135m",
            "--cost-model",
            str(this_machine),
            "--rate",
            "2",
            "--slo",
            "ttft=1,tpot=0.1",
        ),
        *("--input-len", "64", "--output-len", "16", "--policies", "chunked-prefill"),
        *("--json", str(output), "--quiet"),
    )
    assert done.exit_code == 0, done.output
    plan = json.loads(output.read_text())
    best = plan["best"]
    assert best["hardware"] == "this-machine"
    assert best["usd_per_million_output_tokens"] is None
    assert "--num-threads 2" in best["serve_command"]
    assert "--max-num-seqs 8" in best["serve_command"]
    # 64 prompt tokens and 16 decodes, alone: about 13 ms and 16 steps of 10, of which eight share a step.
    assert 10 < best["capacity_rps"] < 60
    assert plan["fits"][0]["max_tokens_in_cache"] == 512 * 16


def test_a_measurement_of_another_model_is_refused(this_machine: Path):
    with pytest.raises(ValueError, match=r"measured on 'smollm2-135m', and the plan is for 'llama-3\.2-1b'"):
        run("--model", "llama-3.2-1b", "--cost-model", str(this_machine), "--rate", "1", *SMALL)


def test_a_fit_without_limits_is_refused(this_machine: Path):
    fit = FittedCostModel.read(this_machine)
    this_machine.write_text(replace(fit, manifest={"model": "smollm2-135m"}).to_json())
    with pytest.raises(ValueError, match="says nothing of its limits"):
        run("--model", "smollm2-135m", "--cost-model", str(this_machine), "--rate", "1", *SMALL)


def test_where_nothing_keeps_the_promise_the_exit_code_says_so(tmp_path: Path):
    done = run(
        *("--model", "llama-3.1-70b", "--rate", "1", "--hardware", "a100", "--slo", "ttft=0.5,tpot=0.001"),
        *SMALL,
    )
    assert done.exit_code == 1
    assert "nothing keeps TTFT 0.5 s and TPOT 1 ms" in done.output
    assert "a request alone has a TPOT of" in done.output


NONSENSE = [
    (("--rate", "-1"), "--rate must be above 0, got -1"),
    (("--rate", "nan"), "--rate must be above 0"),
    ((), "give --rate R requests a second, or --trace"),
    (("--rate", "1", "--hardware", "h1000"), "hardware 'h1000' is not known; did you mean 'h100'"),
    (("--rate", "1", "--hardware", ","), "--hardware names none"),
    (("--rate", "1", "--hardware", "this-machine"), "needs --cost-model FILE"),
    (("--rate", "1", "--slo", "ttft=0"), "ttft must be above 0 seconds, got 0"),
    (("--rate", "1", "--slo", "latency=1"), "--slo takes targets in seconds such as"),
    (("--rate", "1", "--slo", "ttft=soon"), "ttft must be a number of seconds, got 'soon'"),
    (("--rate", "1", "--precision", "fp9"), "did you mean 'fp8'"),
    (("--rate", "1", "--kv-cache-dtype", "fp9"), "did you mean 'fp8'"),
    (("--rate", "1", "--policies", "lifo"), "no policy is named 'lifo'"),
    (("--rate", "1", "--tensor-parallel-size", "two"), "takes numbers of devices such as 1,2,4"),
    (("--rate", "1", "--attainment", "2"), "attainment must be a share above 0"),
    (("--rate", "1", "--max-kl", "-1"), "--max-kl must be 0 or more"),
    (("--rate", "1", "--price", "h100"), "--price takes NAME=USD"),
    (("--rate", "1", "--price", "h100=-2"), "must cost 0 dollars an hour or more"),
    (("--rate", "1", "--input-len", "0"), "--input-len must be at least 1"),
    (("--rate", "1", "--input-len", "200000"), "longer than the context of 131,072"),
    (("--rate", "1", "--max-model-len", "200000"), "beyond the 131,072 positions"),
    (("--rate", "1", "--length-scale", "2"), "--length-scale is about a trace"),
    (("--rate", "1", "--trace", "x.csv", "--input-len", "3"), "--trace brings its own lengths"),
    (("--rate", "1", "--trace", "no.csv"), "no trace file at no.csv"),
    (("--rate", "1", "--hardware", "a100", "--precision", "fp8"), "a100-80gb has bf16, int8"),
    (("--rate", "1", "--json", "/no/such/dir/x.json"), "there is no directory"),
]


@pytest.mark.parametrize(("arguments", "said"), NONSENSE)
def test_nonsense_is_refused_with_what_would_be_right(arguments, said):
    with pytest.raises((ValueError, OSError)) as caught:
        run("--model", "llama-3.1-8b", *arguments)
    assert said in str(caught.value)


def test_a_model_that_fits_nowhere_is_refused_with_what_would_fit():
    with pytest.raises(ValueError, match=r"does not fit.*8 x a10g hold 192 GB.*What would fit: .*int4 on"):
        run("--model", "llama-3.1-405b", "--rate", "1", "--hardware", "a10g")
