"""What `tightpack bench` and `demo` refuse, before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tightpack.cli.bench import bench
from tightpack.cli.demo import demo


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> None:
        raise AssertionError("the model was loaded before the options were checked")

    monkeypatch.setattr("tightpack.llm.load_engine", load)


def refusal(command: object, *arguments: str) -> str:
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code != 0
    assert isinstance(result.exception, (ValueError, FileNotFoundError)), result.output
    return str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--policies continous", "no policy is named 'continous'; did you mean 'continuous'?"),
        (
            "--policies static,zzz",
            "no policy is named 'zzz'; there are static, dynamic, continuous, chunked-prefill",
        ),
        ("--policies static,static", "names static twice"),
        ("--policies ,", "--policies names none"),
        ("--requests 0", "--requests must be at least 1, got 0"),
        ("--input-len -5", "--input-len must be at least 1, got -5"),
        ("--output-len 0", "--output-len must be at least 1"),
        ("--max-num-seqs 0", "--max-num-seqs must be at least 1"),
        ("--max-num-batched-tokens -1", "--max-num-batched-tokens must be at least 1"),
        ("--max-model-len 1", "--max-model-len must be at least 2"),
        ("--repeats 0", "--repeats must be at least 1"),
        ("--rate 0", "--rate must be above 0, got 0"),
        ("--rate -2.5", "--rate must be above 0, got -2.5"),
        ("--rate nan", "--rate must be above 0, got nan"),
        ("--trace absent.csv", "no trace file at absent.csv"),
        ("--trace absent.csv --rate 3", "--trace brings its own lengths and arrivals; drop --rate"),
        ("--trace absent.csv --mixed", "drop --mixed"),
        ("--time-scale 2", "--time-scale stretches a trace; give --trace FILE.csv"),
        ("--trace absent.csv --time-scale -1", "--time-scale must be above 0, got -1"),
        ("--scenario dmeo", "no scenario is named 'dmeo'; did you mean 'demo'?"),
        ("--scenario demo --requests 4", "--scenario brings its own workload and limits; drop --requests"),
        ("--scenario demo --policies fast", "no policy is named 'fast'"),
        ("--json absent/out.json", "there is no directory absent"),
    ],
)
def test_bad_options(arguments: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert says in refusal(bench, *arguments.split())


def test_the_json_file_must_be_a_file(tmp_path: Path) -> None:
    assert "is a directory; name a file" in refusal(bench, "--json", str(tmp_path))
    assert "is a directory; name a file" in refusal(demo, "--json", str(tmp_path))
