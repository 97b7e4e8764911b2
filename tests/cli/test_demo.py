"""The tour from its start to its page, on a tiny model; and what it recommends to type."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tightpack.cli.demo import _in_lines
from tightpack.cli.main import app
from tightpack.scheduling.registry import POLICY_NAMES

QUICK = ("--seconds", "0.05", "--num-threads", "1", "--executor", "native", "--device", "cpu")


@pytest.fixture(scope="module")
def toured(tiny_model, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any], str]:
    """What the command printed, its numbers and its page."""
    place = tmp_path_factory.mktemp("demo")
    # Random weights have no distributions worth keeping: every precision is within the bound.
    written = ("--json", str(place / "demo.json"), "--html", str(place / "demo.html"), "--max-kl", "9")
    done = CliRunner().invoke(app, ["demo", str(tiny_model("llama")), *QUICK, *written])
    assert done.exit_code == 0, done.output
    return done.output, json.loads((place / "demo.json").read_text()), (place / "demo.html").read_text()


def test_every_precision_runs_under_every_policy(toured) -> None:
    output, report, _ = toured
    assert [result["label"] for result in report["tour"]] == ["bf16", "int8", "int4"]
    for result in report["tour"]:
        assert [run["policy"] for run in result["runs"]] == list(POLICY_NAMES)
        # The same requests everywhere, and all of them answered.
        assert result["workload"] == report["tour"][0]["workload"]
        assert {run["completed"] for run in result["runs"]} == {result["workload"]["requests"]}
    for policy in POLICY_NAMES:
        assert len(re.findall(rf"^(?:→| ) {policy} +\d", output, re.MULTILINE)) == 3
    tables = output.split("Serve it like this")[0].split("Model  ")[1].splitlines()[1:]
    assert max(map(len, tables)) <= 80


def test_fewer_bits_take_less_memory_and_cost_more(toured) -> None:
    _, report, _ = toured
    bf16, int8, int4 = (result["precision"] for result in report["tour"])
    assert bf16["weight_bytes"] > int8["weight_bytes"] > int4["weight_bytes"]
    assert bf16["quality"] is None
    assert 0 < int8["quality"]["kl"] < int4["quality"]["kl"]
    assert report["rounded_to_int4_anew"] is None  # it comes in bf16, and int4 is that


def test_the_line_to_serve_is_what_was_measured(toured, tiny_model) -> None:
    output, report, page = toured
    line = report["recommendation"]["serve"]
    winner = report["recommendation"]["winner"]
    words = shlex.split(line)
    assert words[:3] == ["tightpack", "serve", str(tiny_model("llama"))]
    given = dict(zip(words[3::2], words[4::2], strict=True))
    assert given["--policy"] == winner["policy"]
    assert given.get("--quantization", "bf16") == winner["precision"]
    limits = report["tour"][0]["arguments"]["limits"][winner["policy"]]
    assert given["--max-num-seqs"] == str(limits["max_num_seqs"])
    assert given.get("--max-num-batched-tokens") == (
        str(limits["max_num_batched_tokens"]) if limits["max_num_batched_tokens"] else None
    )
    printed = output.replace("\\\n", "")
    assert line.removeprefix("tightpack ") in " ".join(printed.split())
    assert "Serve it like this" in page
    # The server takes every option named.
    options = CliRunner().invoke(app, ["serve", "--help"]).output
    assert all(name in options for name in given)


def test_the_results_make_the_page_again(toured, tmp_path: Path) -> None:
    _, report, page = toured
    (tmp_path / "demo.json").write_text(json.dumps(report))
    done = CliRunner().invoke(app, ["report", str(tmp_path / "demo.json"), "-o", str(tmp_path / "page.html")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "page.html").read_text() == page


def test_a_quality_bound_that_nothing_else_meets(tiny_model, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = CliRunner().invoke(
        app, ["demo", str(tiny_model("llama")), *QUICK, "--max-kl", "0", "--html", str(page)]
    )
    assert done.exit_code == 0, done.output
    assert "Left out for quality: int8, int4." in done.output
    assert "--quantization" not in done.output


def test_it_needs_no_torch(tiny_model, tmp_path: Path) -> None:
    program = "import sys; sys.modules['torch'] = None; from tightpack.cli.main import main; main()"
    command = [sys.executable, "-c", program, "demo", str(tiny_model("llama")), *QUICK]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    # Without --html the page lies where one is.
    assert (tmp_path / "tightpack-demo.html").is_file()
    assert "Charts of all of it: tightpack-demo.html" in done.stdout


def test_a_page_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no directory"):
        CliRunner().invoke(
            app, ["demo", "--html", str(tmp_path / "no" / "page.html")], catch_exceptions=False
        )


def test_a_command_is_broken_where_a_shell_can_join_it() -> None:
    line = "tightpack convert model -o model-bf16 && tightpack serve model-bf16 --policy slo --max-num-seqs 8"
    shown = _in_lines(line, 50)
    assert max(map(len, shown.splitlines())) <= 56
    assert len(shown.splitlines()) > 2
    assert shlex.split(shown.replace("\\\n", " ")) == shlex.split(line)
    assert _in_lines("tightpack serve --policy slo", 60) == "  tightpack serve --policy slo"
