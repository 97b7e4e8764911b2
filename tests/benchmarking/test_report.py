from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tightpack.benchmarking.comparison import compare_policies, warm_up
from tightpack.benchmarking.driver import drive
from tightpack.benchmarking.manifest import Conditions, manifest
from tightpack.benchmarking.observations import against_baseline, while_a_long_prompt_arrives
from tightpack.benchmarking.outcomes import Progress
from tightpack.benchmarking.policy_run import PolicyRun, intervals, median_run
from tightpack.benchmarking.report import run_to_json, to_json, write_json
from tightpack.benchmarking.results_table import class_table, interval_notes, results_table, table_notes
from tightpack.benchmarking.target import InProcess
from tightpack.benchmarking.workload import with_classes
from tightpack.requests.service_class import BATCH, STANDARD

MIX = [(0.25 * i, 3 + 5 * (i % 3), 2 + 4 * (i % 4)) for i in range(8)]
POLICIES = ("static", "dynamic", "continuous", "chunked-prefill")


@pytest.fixture
def compare(make_loop, workload):
    def run(*policies: str, requests=MIX, repeats: int = 1, **options) -> list[list[PolicyRun]]:
        # Each repeat is a little later than the one before.
        workloads = [
            workload(*((arrival * (1 + 4 * i), *lengths) for arrival, *lengths in requests))
            for i in range(repeats)
        ]
        return compare_policies(InProcess(make_loop), policies or POLICIES, workloads, **options)

    return run


def printed(*renderables: object, width: int = 80) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, color_system=None)
    for one in renderables:
        console.print(one)
    return out.getvalue()


def test_numbers_of_a_run_by_hand(make_loop, workload, clock) -> None:
    planned = workload((0.0, 9, 3), (0.0, 1, 1))
    run = PolicyRun.of("continuous", drive(make_loop(), planned))
    assert (run.requests, run.completed, run.duration_s) == (2, 2, 4.0)
    assert run.output_tokens_per_s == 1.0
    assert run.total_tokens_per_s == 3.5
    # TTFT is 2 s for both; the first has TPOT 1 s and misses its class's 0.1 s, the second has none.
    assert run.goodput_per_s == 0.25
    assert run.latency.ttft_s.p99 == 2.0
    assert (run.num_steps, run.preemptions, run.busy_s) == (3, 0, 4.0)
    assert [(one.start_s, one.prompt_tokens, one.decodes) for one in run.steps] == [
        (0.0, 10, 0),
        (2.0, 0, 1),
        (3.0, 0, 1),
    ]


def test_requests_that_failed_are_in_no_latency(make_loop, workload, clock, executor) -> None:
    executor.failing.add("bench-0")
    planned = workload((0.0, 1, 5), (0.0, 1, 2))
    run = PolicyRun.of("continuous", drive(make_loop(), planned))
    assert (run.requests, run.completed, run.latency.num_output_tokens) == (2, 1, 2)
    assert "! continuous: 1 of 2 requests did not complete: it was told to" in table_notes(planned, [run])


def test_json_has_the_promised_schema(compare, workload, tmp_path: Path) -> None:
    runs = compare(repeats=3)
    head = manifest(model="tiny", label="bf16", executor={"device": "none"}, arguments={"seed": 0})
    conditions = Conditions(warm_up_requests=8, prefix_caching=False, kv_cache_at_start="empty")
    report = to_json(head, conditions, [workload(*MIX)], runs)
    path = tmp_path / "new" / "out.json"
    write_json(path, report)
    read = json.loads(path.read_text())
    assert (read["model"], read["label"], read["where"]) == ("tiny", "bf16", "local")
    assert read["conditions"]["kv_cache_at_start"] == "empty"
    assert {"tightpack", "numpy"} <= read["versions"].keys()
    assert {"cpu", "cores", "memory_gib", "os", "python"} <= read["machine"].keys()
    assert read["machine"]["cores"] >= 1
    assert [run["policy"] for run in read["runs"]] == list(POLICIES)
    for run in read["runs"]:
        assert run["requests"] == run["completed"] == len(MIX)
        assert run["output_tokens_per_s"] > 0
        assert len(run["output_tokens_per_s_of_repeats"]) == 3
        for latency in ("ttft_s", "tpot_s", "itl_s"):
            seconds = run[latency]
            assert seconds["p50"] <= seconds["p90"] <= seconds["p99"] <= seconds["max"]
        assert run["intervals"]["ttft_s.p99"]["low"] < run["intervals"]["ttft_s.p99"]["high"]
        timeline = run["timeline"]
        assert {len(column) for column in timeline.values()} == {run["steps"]}
        assert sum(timeline["prompt_tokens"]) == sum(length for _, length, _ in MIX)
    assert read["workload"]["output_tokens"] == sum(output for _, _, output in MIX)
    assert read["workload"]["service_classes"] == {"standard": {"ttft_s": 2.0, "tpot_s": 0.1}}


def test_long_lists_stay_on_a_line_of_the_file(compare, workload, tmp_path: Path) -> None:
    head = manifest(model="tiny", label="bf16", executor={}, arguments={})
    report = to_json(head, Conditions(0, None, "unknown"), [workload(*MIX)], compare("continuous"))
    path = tmp_path / "out.json"
    write_json(path, report)
    text = path.read_text()
    assert json.loads(text) == json.loads(json.dumps(report))
    [line] = [line for line in text.splitlines() if '"decodes"' in line]
    assert line.count(",") >= 10


def test_repeats_give_means_with_intervals(compare) -> None:
    [runs] = compare("continuous", repeats=3)
    rates = [run.output_tokens_per_s for run in runs]
    assert len(set(rates)) > 1
    found = intervals(runs)["output_tokens_per_s"]
    assert found.low is not None
    assert found.high is not None
    assert found.low < min(rates) <= found.mean <= max(rates) < found.high
    [note] = interval_notes([runs])
    assert note.startswith(f"± continuous: {found.mean:.0f} ± {found.half_width:.0f} tokens/s")
    assert interval_notes([runs[:1]]) == []


def test_classes_are_told_apart(make_loop, workload) -> None:
    planned = workload(*[(0.0, 1, 2)] * 4)
    shapes = with_classes([one.shape for one in planned.requests], {STANDARD: 1, BATCH: 1}, seed=0)
    requests = tuple(replace(one, shape=s) for one, s in zip(planned.requests, shapes, strict=True))
    run = PolicyRun.of("continuous", drive(make_loop(), replace(planned, requests=requests)))
    by_name = {one.service_class.name: one for one in run.classes}
    # A step of a second misses the 0.1 s of standard; batch has no targets to miss.
    assert (by_name["standard"].attained, by_name["batch"].attained, run.attained) == (0.0, 1.0, 0.5)
    assert sum(one.goodput_per_s for one in run.classes) == run.goodput_per_s
    assert "batch" in printed(class_table([run]))


def test_the_longest_prompts_are_judged_apart(make_loop, workload) -> None:
    requests = [(0.0, 1, 1)] * 9 + [(0.0, 30, 1)]
    run = PolicyRun.of("continuous", drive(make_loop(max_num_seqs=10), workload(*requests)))
    assert run.longest_prompts_attained == 0.0  # 1 + 29/8 s, beyond the 2 s of standard
    run = PolicyRun.of("continuous", drive(make_loop(), workload(*[(0.0, 1, 1)] * 2)))
    assert run.longest_prompts_attained == 1.0


def test_a_run_without_two_tokens_has_null_percentiles(make_loop, workload, clock) -> None:
    run = PolicyRun.of("continuous", drive(make_loop(), workload((0.0, 1, 1))))
    record = json.loads(json.dumps(run_to_json(run)))
    assert record["tpot_s"]["p50"] is record["itl_s"]["p99"] is None
    assert "–" in printed(results_table([run]))


def test_policies_differ_as_they_should(compare) -> None:
    by_policy = {run.policy: run for [run] in compare()}
    static, continuous = by_policy["static"], by_policy["continuous"]
    assert continuous.output_tokens_per_s > static.output_tokens_per_s
    assert continuous.latency.ttft_s.p99 < static.latency.ttft_s.p99
    assert static.releases_at_once
    assert not continuous.releases_at_once


def test_repeats_alternate_and_the_median_is_one_of_them(compare) -> None:
    order: list[str] = []

    class Watch:
        def started(self, policy: str, total: int) -> None:
            order.append(policy)
            assert total == len(MIX)

        def progressed(self, policy: str, progress: Progress) -> None:
            assert policy == order[-1]

        def ended(self, run: PolicyRun) -> None:
            assert run.policy == order[-1]

    runs = compare("static", "continuous", repeats=2, observer=Watch())
    assert order == ["static", "continuous"] * 2
    assert [len(repeated) for repeated in runs] == [2, 2]
    assert median_run(runs[0]) in runs[0]


def test_warm_up_is_short_and_ignores_arrival_times(make_loop, workload, clock) -> None:
    loop = make_loop()
    warm_up(
        InProcess(lambda policy, **limits: loop), "any", workload(*[(1000.0 * i, 2, 30) for i in range(20)])
    )
    assert loop.stats.generation_tokens == 8 * 8
    assert clock.slept == []


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_and_marks_the_best(compare, workload, width: int) -> None:
    runs = [run for [run] in compare()]
    text = printed(results_table(runs), *table_notes(workload(*MIX), runs), width=width)
    lines = text.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert "…" not in text
    rows = {policy: next(line for line in lines if line.strip().startswith(policy)) for policy in POLICIES}
    assert rows["static"].count("–") == 3  # TPOT p50, p99 and ITL mean nothing
    assert "*" not in rows["static"]
    assert "*" in rows["continuous"]
    assert "* best of its column" in text
    assert "– static hands over all tokens of a batch at its end" in text


def test_equal_runs_have_no_best(compare) -> None:
    [[run]] = compare("continuous")
    assert "*" not in printed(results_table([run, run]))


def test_the_sentences_say_what_the_numbers_say(compare) -> None:
    static, dynamic, continuous, chunked = (run for [run] in compare())
    sentence = against_baseline([static, dynamic, continuous, chunked])
    best = max((dynamic, continuous, chunked), key=lambda run: run.output_tokens_per_s)
    assert sentence is not None
    assert sentence.startswith(f"{best.policy} gave {best.output_tokens_per_s:.0f} tokens/s and static")
    assert f"{best.latency.ttft_s.p99:.1f} s with {best.policy}" in sentence
    ratio = best.output_tokens_per_s / static.output_tokens_per_s
    assert (f"{(ratio - 1) * 100:.0f} % more" if ratio < 2 else f"{ratio:.1f} times as many") in sentence
    assert "% shorter" in sentence
    assert against_baseline([static]) is None
    assert against_baseline([continuous, chunked]) is None


def test_the_sentences_also_say_it_when_it_went_the_other_way(compare) -> None:
    static, _, continuous, chunked = (run for [run] in compare())
    sentence = against_baseline([static, continuous], baseline="continuous")
    assert sentence is not None
    assert "% fewer" in sentence
    assert "% longer" in sentence or "times as long" in sentence
    assert "about the same" in (against_baseline([continuous, chunked], baseline="chunked-prefill") or "")


def test_the_sentence_on_long_prompts(compare) -> None:
    requests = [(0.0, 1, 30), (3.5, 50, 2)]
    [[continuous], [chunked]] = compare("continuous", "chunked-prefill", requests=requests)
    sentence = while_a_long_prompt_arrives([continuous, chunked])
    assert sentence is not None
    assert f"{continuous.latency.itl_s.p99:.1f} s with continuous" in sentence
    assert f"{chunked.latency.itl_s.p99:.1f} s with chunked-prefill" in sentence
    assert while_a_long_prompt_arrives([continuous]) is None
