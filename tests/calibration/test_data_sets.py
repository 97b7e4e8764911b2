from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tightpack.calibration.data_sets import DataSet, open_text, parse_data_set
from tightpack.calibration.text import TextError
from tightpack.checkpoints.open import open_checkpoint
from tightpack.checkpoints.tokenizer import Tokenizer


@pytest.fixture
def tokenizer(tiny_model: Callable[[str], Path]) -> Tokenizer:
    return open_checkpoint(str(tiny_model("llama"))).tokenizer


@pytest.fixture
def local_data_set(tmp_path: Path) -> Path:
    """A directory that `datasets` reads as it would a repository of the hub: 200 texts, every third empty."""
    directory = tmp_path / "texts"
    directory.mkdir()
    rows = ({"text": "" if number % 3 == 0 else f"w{number % 90 + 4} w7 w8"} for number in range(200))
    (directory / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def test_names() -> None:
    assert parse_data_set("wikitext") == DataSet("Salesforce/wikitext", "wikitext-2-raw-v1", "train")
    assert parse_data_set("wikitext::test") == DataSet("Salesforce/wikitext", "wikitext-2-raw-v1", "test")
    assert parse_data_set("someone/texts") == DataSet("someone/texts", None, "train")
    assert parse_data_set("someone/texts:en:validation") == DataSet("someone/texts", "en", "validation")
    with pytest.raises(TextError, match=r"NAME\[:CONFIG\[:SPLIT\]\]"):
        parse_data_set("a:b:c:d")


def test_a_file_stays_a_file(tiny_text: Path, tokenizer: Tokenizer) -> None:
    assert open_text(tiny_text, tokenizer, 10).source == str(tiny_text)
    with pytest.raises(TextError, match=r"missing\.txt: no such text file"):
        open_text("missing.txt", tokenizer, 10)


def test_no_more_is_fetched_than_is_wanted(local_data_set: Path, tokenizer: Tokenizer) -> None:
    pytest.importorskip("datasets")
    few = open_text(str(local_data_set), tokenizer, 100)
    everything = open_text(str(local_data_set), tokenizer, None)
    assert 100 <= len(few.ids) < len(everything.ids)
    assert (everything.ids[: len(few.ids)] == few.ids).all()
    assert few.source.endswith("texts:train")
    assert "w5" in tokenizer.decode(few.ids[:4].tolist())


def test_a_data_set_without_text(tmp_path: Path, tokenizer: Tokenizer) -> None:
    pytest.importorskip("datasets")
    directory = tmp_path / "labels"
    directory.mkdir()
    (directory / "train.jsonl").write_text('{"label": 1, "content": "w5"}\n')
    with pytest.raises(TextError, match='row 0 has no string field "text"; it has content, label'):
        open_text(str(directory), tokenizer, 10)


def test_without_the_package_it_says_what_to_install(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"wikitext.* is no file.*pip install 'tightpack\[datasets\]'"
    ):
        open_text("wikitext", tokenizer, 10)


def test_a_hub_out_of_reach(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    command = [sys.executable, "-m", "tightpack.cli.main", "evaluate", str(tiny_model("llama"))]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    found = subprocess.run(
        [*command, "--text", "wikitext", "--samples", "2"], capture_output=True, text=True, env=environment
    )
    assert found.returncode != 0
    assert "could not be read as a data set" in found.stderr
    assert "Traceback" not in found.stderr
