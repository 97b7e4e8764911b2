"""The side-by-side benchmark: runners as processes, figures from seconds, ceilings, memory, tables."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"

# A runner whose engine takes a millisecond a step, and says on standard output what it likes.
FAKE_RUNNER = """
import sys, time
sys.path.insert(0, {folder!r})
from runner_protocol import run

class Engine:
    name, version = "fake", "1"
    def __init__(self, job):
        print("an engine's own words")
        if job.settings.get("broken"):
            raise SystemExit("no such weights")
        self.settings = job.settings
    def prepare(self, streams, tokens): ...
    def generate(self, prompts, output_len):
        time.sleep(0.001 * output_len)
        return [output_len - self.settings.get("short", 0)] * len(prompts)

run(Engine)
"""


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Imports from benchmarks/, which is no package of the project."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    yield import_module
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("side_by_side", "peers", "make_table"):
            del sys.modules[name]


@pytest.fixture
def run_fake(load: Callable[[str], ModuleType], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    sitting = load("side_by_side.sitting")
    script = tmp_path / "run_fake.py"
    script.write_text(FAKE_RUNNER.format(folder=str(FOLDER / "peers")), encoding="utf-8")

    def run(**settings: Any) -> dict[str, Any]:
        shapes = (("one", 1, 4, 3), ("long", 1, 8, 1), ("many", 3, 4, 2))
        protocol = sitting.Protocol(shapes, threads=1, repeats=2, vocabulary=200)
        job = json.dumps(protocol.job(tmp_path, settings))
        return dict(sitting.run_job([sys.executable, str(script)], job))

    return run


def report_of(*rows: tuple[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Rows of (key, rounds); a round: seconds of the shape "one" (1 stream, 128 + 101 tokens), and memory."""
    return {
        "date": "2026-01-02T03:04:05+00:00",
        "model": "tiny",
        "machine": {"cpu": "a processor"},
        "protocol": {"shapes": [["one", 1, 128, 101]], "threads": 2, "repeats": 1},
        "geometry": {"body_weights": 90_000_000, "head_weights": 10_000_000, "kv_elements": 0},
        "peaks": [
            {
                "threads": 2,
                "int8_ops_per_s": 1e12,
                "int8_kernel": "k8",
                "bf16_ops_per_s": 5e11,
                "bf16_kernel": "k16",
                "read_bytes_per_s": 5e10,
            }
        ],
        "rows": [
            {
                "key": key,
                "engine": key.split("/")[0],
                "version": "9",
                "weight_bytes": 100_000_000,
                "rounds": [
                    {
                        "seconds": {"one": {"first_s": [one["first"]], "whole_s": [one["whole"]]}},
                        "memory_mib": one["memory"],
                        "first_token_s": 1.0,
                    }
                    for one in rounds
                ],
            }
            for key, rounds in rows
        ],
    }


OURS = [{"first": 0.5, "whole": 1.0, "memory": 100}, {"first": 0.5, "whole": 0.75, "memory": 100}] * 2
THEIRS = [{"first": 1.0, "whole": 3.0, "memory": 200.0}]


def test_a_runner_gives_seconds_of_every_shape_and_its_memory(run_fake: Callable[..., Any]) -> None:
    found = run_fake()
    assert found["engine"] == "fake"
    assert {name: (len(s["first_s"]), len(s["whole_s"])) for name, s in found["seconds"].items()} == {
        "one": (2, 2),
        "long": (2, 0),
        "many": (2, 2),
    }
    assert min(found["seconds"]["one"]["whole_s"]) >= 0.003
    assert found["first_token_s"] > 0.001
    assert 1 < found["memory_mib"] < 500


def test_a_runner_that_ends_early_is_an_error_with_its_last_words(run_fake: Callable[..., Any]) -> None:
    with pytest.raises(RuntimeError, match="no such weights"):
        run_fake(broken=True)


def test_streams_that_are_too_short_are_an_error(run_fake: Callable[..., Any]) -> None:
    with pytest.raises(RuntimeError, match="1 streams of 1 tokens were asked for"):
        run_fake(short=1)


def test_a_job_with_an_unknown_field_is_refused(load: Callable[..., ModuleType], monkeypatch: Any) -> None:
    monkeypatch.syspath_prepend(str(FOLDER / "peers"))
    protocol = load("runner_protocol")
    with pytest.raises(ValueError, match="no field 'thread'"):
        protocol.Job.from_json('{"shapes": [], "thread": 2}')


def test_figures_follow_from_the_seconds(load: Callable[..., ModuleType]) -> None:
    figures = load("side_by_side.figures")
    shapes = (("one", 1, 128, 101), ("long", 1, 1024, 1), ("32", 32, 128, 64))
    one = {
        "seconds": {
            "one": {"first_s": [0.7, 0.5], "whole_s": [0.9, 1.0]},
            "long": {"first_s": [2.0], "whole_s": []},
            "32": {"first_s": [1.0], "whole_s": [4.0]},
        },
        "memory_mib": 12.5,
        "first_token_s": 3.0,
        "http": {"output_tokens_per_s": 256.0},
    }
    assert figures.figures_of(one, shapes) == pytest.approx(
        {
            "decode_1": 100 / 0.4,
            "prefill_128": 256.0,
            "prefill_1024": 512.0,
            "decode_32": 32 * 63 / 3.0,
            "job_32": 512.0,
            "memory_mib": 12.5,
            "first_token_s": 3.0,
            "http_32": 256.0,
            "http_share": 0.5,
        }
    )


def test_the_ceiling_is_memory_for_one_stream_and_arithmetic_for_a_prompt(
    load: Callable[..., ModuleType],
) -> None:
    figures, roofline = load("side_by_side.figures"), load("side_by_side.roofline")
    (row,) = (row for row in figures.ROWS if row.key == "llamacpp/Q8_0")
    geometry = {"body_weights": 100, "head_weights": 20, "kv_elements": 2}
    peaks = roofline.Peaks(1000.0, {"int8": 10_000.0, "bf16": 1.0})
    found = roofline.ceilings(row, geometry, 120, peaks, (("one", 1, 40, 20), ("32", 32, 40, 20)))
    # 120 bytes of weights and 50 positions of 4 bytes a token, at 1000 bytes a second.
    assert found["decode_1"] == pytest.approx(1000 / (120 + 50 * 4))
    # 40 tokens of 200 operations and one head of 40, at 10,000 a second.
    assert found["prefill_128"] == pytest.approx(40 / ((40 * 200 + 40) / 10_000))
    # 32 streams: 32 * 240 operations take 0.768 s, 120 + 32 * 200 bytes 6.52 s.
    assert found["decode_32"] == pytest.approx(32 / 6.52)
    assert found["job_32"] == pytest.approx(32 * 20 / (32 * (40 * 200 + 40) / 10_000 + 19 * 6.52))


def test_memory_counts_children_and_forgives_processes_that_end(
    load: Callable[..., ModuleType], tmp_path: Path
) -> None:
    memory = load("side_by_side.process_memory")
    for pid, parent, pss in ((1, 0, None), (10, 1, 5), (11, 10, 7), (12, 11, None), (20, 1, 100)):
        folder = tmp_path / str(pid)
        folder.mkdir()
        (folder / "stat").write_text(f"{pid} (a (strange) name) S {parent} 0 0", encoding="utf-8")
        if pss is not None:
            (folder / "smaps_rollup").write_text(f"header\nRss: 999 kB\nPss: {pss} kB\n", encoding="utf-8")
    assert memory.resident_bytes(10, tmp_path) == 12 * 1024


def test_tables_show_medians_the_best_of_a_class_and_the_share_of_the_roofline(
    load: Callable[..., ModuleType],
) -> None:
    table = load("side_by_side.table")
    report = report_of(("tightpack/Q4_0", OURS), ("llamacpp/Q4_0", THEIRS), ("llamacpp/BF16", THEIRS))
    short = table.readme_table(report, "data.json")
    # Of the rounds' 200 and 400 tokens/s, the median; the peer has 50.
    assert "| 4 | tightpack Q4_0 | **300** | **100** | **1.0** |" in short
    assert "| 4 | llama.cpp Q4_0 | 50 | 200 | **1.0** |" in short
    assert "| 16 | llama.cpp BF16 | **50** | **200** | **1.0** |" in short
    assert "medians of 1 to 4 alternating rounds; tiny on 2 threads of a processor" in short
    long = table.document_tables(report, "data.json")
    # 100 MB at 50 GB/s allow 500 tokens/s.
    assert "| 4 | tightpack Q4_0 | 60% |" in long
    assert "| 4 | 6.00 (llama.cpp) | 2.00 (llama.cpp) | 2.00 (llama.cpp) | 1.00 (llama.cpp) |" in long


@pytest.fixture
def documents(tmp_path: Path) -> list[str]:
    """Arguments that name a README, a document and a folder of results, all without a table yet."""
    for name in ("README.md", "performance.md"):
        text = "before\n<!-- peers-table: begin -->\n\n<!-- peers-table: end -->\nafter\n"
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "results").mkdir()
    paths = {"readme": "README.md", "document": "performance.md", "results": "results"}
    return [f"--{option}={tmp_path / path}" for option, path in paths.items()]


def test_a_stale_table_fails_the_check_and_is_rewritten(
    load: Callable[..., ModuleType], documents: list[str], tmp_path: Path
) -> None:
    peers = load("peers")
    assert peers.main(["--check", *documents]) == 0  # nothing measured, nothing shown
    report = report_of(("tightpack/Q4_0", OURS), ("llamacpp/Q4_0", THEIRS))
    (tmp_path / "results" / "peers-2026-01-02.json").write_text(json.dumps(report), encoding="utf-8")
    assert peers.main(["--check", *documents]) == 1
    assert peers.main(["--table", *documents]) == 0
    assert peers.main(["--check", *documents]) == 0
    readme = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert readme.startswith("before\n")
    assert "[data](benchmarks/results/peers-2026-01-02.json)" in readme
    long = (tmp_path / "performance.md").read_text(encoding="utf-8")
    assert "[data](../benchmarks/results/peers-2026-01-02.json)" in long


def test_a_wrong_row_is_refused_by_name(
    load: Callable[..., ModuleType], documents: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peers = load("peers")
    assert peers.main([f"--models={tmp_path}", "--only=tightpack/Q5", *documents]) == 2
    assert "no row 'tightpack/Q5'" in capsys.readouterr().err


def test_runners_stand_alone_and_compile() -> None:
    """Each runs in the interpreter of its engine, which has nothing of this project."""
    for runner in sorted((FOLDER / "peers").glob("*.py")):
        source = runner.read_text(encoding="utf-8")
        compile(source, str(runner), "exec")
        if runner.name != "run_tightpack.py":
            assert "tightpack" not in source, runner.name


def test_the_peaks_program_compiles_without_warnings(tmp_path: Path) -> None:
    if platform.machine() != "x86_64" or shutil.which("c++") is None:
        pytest.skip("knows x86-64 only, and takes a compiler")
    source = FOLDER / "machine_peaks.cpp"
    for instruction_set in ("haswell", "skylake-avx512", "sapphirerapids"):
        command = ["c++", "-std=c++20", "-fsyntax-only", f"-march={instruction_set}"]
        warnings = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]
        done = subprocess.run([*command, *warnings, str(source)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
