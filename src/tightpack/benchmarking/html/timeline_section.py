"""The page's timelines of what each step held."""

from __future__ import annotations

from collections.abc import Sequence

from tightpack.benchmarking.html.markup import tag, text
from tightpack.benchmarking.html.parts import legend, section
from tightpack.benchmarking.html.results import Record, Result, Scene, gap
from tightpack.benchmarking.html.sections import capitalized
from tightpack.benchmarking.html.timeline_chart import Timeline, timeline_chart
from tightpack.benchmarking.report import TIMELINE_STEPS

_BY_BATCH = ("static", "dynamic")


def timelines(results: Sequence[Result]) -> str:
    """The scene that shows most: a long prompt's where there is one. All policies of the first result, and of
    the others the one whose gaps between tokens were smallest there. Those that batch whole requests are
    folded up: on their axes the others' steps would be too small to see."""
    by_step, by_batch = _timelines(results)
    if not by_step and not by_batch:
        return ""
    first_result = results[0]
    scene = _scene(first_result)
    workload = first_result.shown_workload if scene is first_result.scenes[0] else scene.workload
    colours = [
        ("prompt tokens alone", "prompt"),
        ("decodes alone", "decode"),
        ("a step with both", "mixed"),
    ]
    first, *folded = [one for one in (by_step, by_batch) if one]
    names = ", ".join(one.policy for one in by_batch)
    return section(
        "Inside the batch",
        f"{capitalized(workload['description'])}. Every request that decodes gets one token a step, so"
        " a step's time is the gap that its reader sees. A whole prompt in one step makes a step as long as"
        " the prompt (red and wide); chunks make many steps of bounded length (red and low). All runs share"
        " their axes. Point at a step to read it.",
        legend(colours),
        _chart(first),
        *(tag("details", tag("summary", text(f"The same of {names}")), _chart(one)) for one in folded),
    )


def _chart(chosen: Sequence[Timeline]) -> str:
    return tag("div", timeline_chart(chosen, until_s=_common_end(chosen)), class_="scroll")


def _timelines(results: Sequence[Result]) -> tuple[list[Timeline], list[Timeline]]:
    """Of policies that form a batch anew each step, and of those that keep one to its end."""
    by_step: list[Timeline] = []
    by_batch: list[Timeline] = []
    best: str | None = None
    for result in results:
        scene = _scene(result)
        runs = result.shown if scene is result.scenes[0] else scene.runs
        runs = [run for run in runs if run.get("timeline")]
        if best is not None:
            runs = [run for run in runs if run["policy"] == best]
        elif runs:
            stepping = [run for run in runs if run["policy"] not in _BY_BATCH] or runs
            best = min(stepping, key=lambda run: gap(run, "itl_s", "p99") or float("inf"))["policy"]
        for run in runs:
            (by_batch if run["policy"] in _BY_BATCH else by_step).append(_timeline(run, result, len(results)))
    return by_step, by_batch


def _timeline(run: Record, result: Result, num_results: int) -> Timeline:
    longest = 1000 * max(run["timeline"]["elapsed_s"])
    note = f"{run['steps']:,} steps, the longest {longest:,.0f} ms"
    p99 = gap(run, "itl_s", "p99")
    if p99 is not None:
        note += f"; p99 gap between tokens {1000 * p99:,.0f} ms"
    name = run["policy"] if num_results == 1 else f"{run['policy']}, {result.label}"
    return Timeline(name, note, run["timeline"], run["policy"])


def _common_end(chosen: Sequence[Timeline]) -> float:
    """Long timelines are cut in the file; the axis ends where the first of the cut ones does."""
    cut = [one.end_s for one in chosen if len(one.columns["start_s"]) >= TIMELINE_STEPS]
    return min(cut, default=max(one.end_s for one in chosen))


def _scene(result: Result) -> Scene:
    return result.scenes[-1]
