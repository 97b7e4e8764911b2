"""The commands of a plan are ones that the program takes."""

from __future__ import annotations

import shlex

import pytest
import typer.main

from tightpack.cli.main import app
from tightpack.planning.candidate import simulate
from tightpack.planning.commands import prepare_command, serve_command
from tightpack.planning.weight_choices import choices_for


def parsed(command: str) -> dict[str, object]:
    """The parameters, as the program's own parser reads them."""
    program, name, *arguments = shlex.split(command)
    assert program == "tightpack"
    found = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    known = {option for parameter in found.params for option in parameter.opts}
    if "--tensor-parallel-size" not in known and "--tensor-parallel-size" in arguments:
        pytest.skip("tightpack serve has no --tensor-parallel-size yet")
    return found.make_context(name, list(arguments)).params


@pytest.mark.parametrize("policy", ["chunked-prefill", "continuous", "slo"])
@pytest.mark.parametrize("precision", ["bf16", "fp8", "int4"])
def test_serve_takes_the_command(llama8b, new_load, new_deployments, policy, precision):
    load = new_load()
    [deployment] = new_deployments(llama8b, precisions=(precision,), kv=("fp8",), sizes=(1,))
    candidate = simulate(deployment, policy, 1, load)[0]
    given = parsed(serve_command(candidate, llama8b, load))
    assert given["policy"] == policy
    assert given["kv_cache_dtype"] == "fp8"
    assert given["max_model_len"] == 2048
    assert given["max_num_seqs"] == candidate.limits.max_num_seqs
    assert given["quantization"] == ("fp8" if precision == "fp8" else None)
    assert given["model"] == ("llama-3.1-8b-int4" if precision == "int4" else llama8b.served)
    if policy == "slo":
        assert given["service_class"] == ["standard:ttft=0.5,tpot=0.05"]
        from tightpack.requests.service_class_settings import resolve_service_classes

        assert resolve_service_classes(given["service_class"])[1].tpot_s == 0.05
    prepare = prepare_command(candidate, llama8b)
    if precision == "int4":
        assert parsed(prepare)["method"] == "awq-gptq"
        assert str(parsed(prepare)["output"]) == given["model"]
    else:
        assert prepare is None


def test_several_devices_and_old_ones_are_told_so(llama8b, new_load, new_deployments):
    load = new_load(ttft=5.0, tpot=0.5)
    [deployment] = new_deployments(llama8b, ("t4",), ("bf16",), sizes=(2,))
    command = serve_command(simulate(deployment, "continuous", 1, load)[0], llama8b, load)
    assert "--tensor-parallel-size 2" in command
    assert "--dtype float16" in command
    assert parsed(command)["dtype"] == "float16"


def test_experts_are_rounded_as_they_are_loaded():
    choices = {choice.name: choice for choice in choices_for(None, None, is_mixture=True)}
    assert all(choice.method is None for choice in choices.values())
    assert choices["int4"].option == "int4"
    assert choices["int4"].kl > next(c.kl for c in choices_for(None, ["int4"]))
