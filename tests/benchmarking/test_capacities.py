"""The capacities of policies on a trace: measured on a simulated machine, shown and drawn."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def scripts() -> Iterator[tuple[ModuleType, ModuleType]]:
    sys.path.insert(0, str(FOLDER))
    try:
        yield load("capacities"), load("capacities_table")
    finally:
        sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def measured(scripts, small_cost_model, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A result of two policies on two segments, and the arguments that gave it."""
    folder = tmp_path_factory.mktemp("capacities")
    rng = random.Random(1)
    rows = [f"{index / 5},{rng.randint(40, 1500)},{rng.randint(4, 60)}" for index in range(160)]
    (folder / "trace.csv").write_text("\n".join(("TIMESTAMP,ContextTokens,GeneratedTokens", *rows)))
    (folder / "small.cost.json").write_text(small_cost_model(512, 1024).to_json())
    arguments = [str(folder / "trace.csv"), str(folder / "out.json"), "--simulate"]
    arguments += [str(folder / "small.cost.json"), "--max-model-len", "1024", "--max-num-seqs", "32"]
    arguments += ["--variants", "chunked-prefill:64", "slo", "--mixes", "interactive + standard"]
    arguments += ["--requests", "60", "--segments", "2", "--skip", "0", "--apart", "80"]
    arguments += ["--probe-seconds", "1", "--resolution", "0.1"]
    assert scripts[0].main(arguments) == 0
    return folder / "out.json", arguments


def test_each_cell_says_what_it_was_like_at_capacity(measured) -> None:
    report = json.loads(measured[0].read_text())
    assert report["where"] == "simulated"
    assert [(one["variant"], one["segment"]) for one in report["cells"]] == [
        *(("chunked-prefill:64", 0), ("chunked-prefill:64", 1)),
        *(("slo", 0), ("slo", 1)),
    ]
    for cell in report["cells"]:
        assert 0 < cell["rate"] < cell["unmet_rate"] <= 1.1 * cell["rate"]
        assert cell["attained"] >= 0.99
        assert cell["longest_gap_p99_s"] > 0
        assert 0 < cell["longest_prompts_attained"] <= 1
        assert cell["batch_tokens_served"] == 1  # there is no batch work in this mix
        assert cell["ceiling"] > 0


def test_resuming_adds_what_is_missing_and_nothing_else(scripts, measured, capsys) -> None:
    path, arguments = measured
    before = path.read_text()
    report = json.loads(before)
    del report["cells"][3]
    path.write_text(json.dumps(report))
    capsys.readouterr()
    assert scripts[0].main([*arguments, "--resume"]) == 0
    assert capsys.readouterr().out.count("segment") == 1
    resumed = json.loads(path.read_text())["cells"]
    assert resumed[:3] == json.loads(before)["cells"][:3]
    assert (resumed[3]["variant"], resumed[3]["segment"]) == ("slo", 1)
    with pytest.raises(ValueError, match="measured under another setting"):
        scripts[0].main([*arguments, "--resume", "--skip", "1"])


def test_the_table_and_the_plot(scripts, measured, tmp_path: Path) -> None:
    document = tmp_path / "doc.md"
    document.write_text("before\n<!-- capacities-x: begin -->\n<!-- capacities-x: end -->\nafter\n")
    options = [str(measured[0]), str(document), "--name", "x", "--default", "chunked-prefill:64"]
    assert scripts[1].main([*options, "--check"]) == 1
    assert scripts[1].main(options) == 0
    assert scripts[1].main([*options, "--check"]) == 0
    text = document.read_text()
    assert text.startswith("before")
    assert text.endswith("after\n")
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| `")]
    assert [row[1].strip() for row in rows] == ["`chunked-prefill:64`", "`slo`", "`slo` ÷"]
    cells = json.loads(measured[0].read_text())["cells"]
    ratio = sum(cells[2 + n]["rate"] / cells[n]["rate"] for n in range(2)) / 2
    assert f"| interactive + standard | {ratio:.3g} ± " in text
    drawn = ElementTree.parse(measured[0].with_suffix(".svg"))
    shapes = [one.get("class") for one in drawn.iter() if one.tag.endswith("rect")]
    assert shapes == ["bar", "slo"]


def test_documents_without_a_place_for_it_are_left_alone(scripts, measured, tmp_path: Path) -> None:
    document = tmp_path / "doc.md"
    document.write_text("no markers\n")
    assert scripts[1].main([str(measured[0]), str(document), "--name", "x", "--default", "slo"]) == 2
    assert document.read_text() == "no markers\n"
