"""lm-eval's tasks through the engine, with tasks and data of the test's own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from typer.testing import CliRunner

from tightpack import LLM
from tightpack.cli.main import app
from tightpack.task_evaluation import EngineLM, evaluate_tasks

DOCUMENTS = [
    {"question": f"w{number} w{number + 1}", "choices": ["w9 w8", "w30", "w12 w7 w5"], "answer": number % 3}
    for number in range(5, 13)
]
TASKS = {
    "choosing": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "writing": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["w77"], max_gen_toks: 5, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "reading": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}} w4 w6 w8"
metric_list: [{metric: word_perplexity}]
""",
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tasks")
    data = directory / "data.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS))
    for name, body in TASKS.items():
        source = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
        (directory / f"{name}.yaml").write_text(f"task: {name}\n{source}{body}")
    return directory


@pytest.fixture(scope="module")
def llm(tiny_model: Callable[[str], Path]) -> Iterator[LLM]:
    made = LLM(model=str(tiny_model("llama")), dtype="float32", max_model_len=64, num_threads=1)
    yield made
    made.engine.executor.close()


def of_transformers(directory: Path, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.inference_mode():
        logits = model(torch.tensor([context + continuation])).logits[0].log_softmax(-1)
    rows = logits[len(context) - 1 : -1]
    chosen = rows[range(len(continuation)), continuation]
    return float(chosen.sum()), bool((rows.argmax(-1) == torch.tensor(continuation)).all())


def test_continuations_score_as_in_transformers(llm: LLM, tiny_model: Callable[[str], Path]) -> None:
    pairs = [([5, 6, 7], [8]), ([9], [10, 11, 12, 13]), ([20, 30, 40, 50], [60, 70])]
    judge = EngineLM(llm)
    scored = judge._loglikelihood_tokens([(None, *pair) for pair in pairs], disable_tqdm=True)
    for (logprob, greedy), pair in zip(scored, pairs, strict=True):
        expected, expected_greedy = of_transformers(tiny_model("llama"), *pair)
        assert logprob == pytest.approx(expected, abs=1e-4)
        assert greedy is expected_greedy
    # What greedy decoding gives is what scores as greedy.
    prompt = {"prompt_token_ids": [5, 6, 7]}
    from tightpack import SamplingParams

    (output,) = llm.generate(prompt, SamplingParams(max_tokens=3, temperature=0, ignore_eos=True), False)
    best = list(output.outputs[0].token_ids)
    ((_, greedy),) = judge._loglikelihood_tokens([(None, [5, 6, 7], best)], disable_tqdm=True)
    assert greedy


def test_a_context_too_long_loses_its_beginning(llm: LLM) -> None:
    long = [5 + number % 80 for number in range(200)]
    judge = EngineLM(llm)
    whole, cut = judge._loglikelihood_tokens(
        [(None, long, [7, 8]), (None, long[-61:], [7, 8])], disable_tqdm=True
    )
    assert whole == cut


def test_tasks_of_each_kind(llm: LLM, tasks: Path) -> None:
    found = evaluate_tasks(llm, list(TASKS), task_directory=tasks, num_fewshot=0)
    assert found["choosing"]["acc"] in [number / 8 for number in range(9)]
    assert found["choosing"]["acc_stderr"] >= 0
    assert 0 <= found["writing"]["exact_match"] <= 1
    assert 1 < found["reading"]["word_perplexity"] < 1e6


def test_the_command(tiny_model: Callable[[str], Path], tasks: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    arguments = ["evaluate", str(tiny_model("llama")), "--tasks", "choosing", "--task-path", str(tasks)]
    result = CliRunner().invoke(app, [*arguments, "--limit", "4", "--json", str(out)])
    assert result.exit_code == 0, result.exception
    assert "choosing" in result.output
    saved = json.loads(out.read_text())
    assert saved["results"]["choosing"]["acc"] in (0, 0.25, 0.5, 0.75, 1)
    assert saved["arguments"]["limit"] == 4


def test_unknown_tasks_are_named(llm: LLM) -> None:
    with pytest.raises(ValueError, match="there is no task 'hellaswagg'"):
        evaluate_tasks(llm, ["hellaswagg"])
