"""Text by name: a file, or a data set of the Hugging Face hub."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tightpack.calibration.text import TextError, TokenText, read_text, text_prefix
from tightpack.checkpoints.tokenizer import Tokenizer

# Documents tokenized at a time, so that no more is fetched than is wanted.
_DOCUMENTS = 64


@dataclass(frozen=True, slots=True)
class DataSet:
    """name: on the hub (owner/name), or a local directory. config: None for its only one."""

    name: str
    config: str | None = None
    split: str = "train"


# What people call the usual calibration texts, to what the hub calls them.
NAMED = {
    "wikitext": DataSet("Salesforce/wikitext", "wikitext-2-raw-v1"),
    "wikitext2": DataSet("Salesforce/wikitext", "wikitext-2-raw-v1"),
    "c4": DataSet("allenai/c4", "en"),
    "pileval": DataSet("mit-han-lab/pile-val-backup", split="validation"),
    "fineweb-edu": DataSet("HuggingFaceFW/fineweb-edu", "sample-10BT"),
}


def open_text(source: str | Path, tokenizer: Tokenizer, tokens: int | None) -> TokenText:
    """The text that `source` names: an existing file, a directory that
    holds a data set, or one of the hub, `NAME[:CONFIG[:SPLIT]]`.

    tokens: how many are wanted; of a data set documents are fetched until there are so many. None for all.
    Raises TextError, and ModuleNotFoundError that says what to install where a data set is asked for and
    `datasets` is absent.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _read_data_set(DataSet(str(path)), tokenizer, tokens)
    if path.is_file() or _looks_like_a_file(str(source)):
        return read_text(path, tokenizer)
    return _read_data_set(parse_data_set(str(source)), tokenizer, tokens)


def parse_data_set(text: str) -> DataSet:
    """`wikitext`, `owner/name`, `owner/name:config` or `owner/name:config:split`; config may be empty."""
    name, *rest = text.split(":")
    if len(rest) > 2 or not name:
        raise TextError(f"{text}: a data set is NAME[:CONFIG[:SPLIT]]")
    known = NAMED.get(name, DataSet(name))
    config = rest[0] if rest and rest[0] else known.config
    return DataSet(known.name, config, rest[1] if len(rest) == 2 else known.split)


def _looks_like_a_file(source: str) -> bool:
    """So that a mistyped path is told so, and not looked for on the hub."""
    suffix = Path(source).suffix.lower()
    return suffix in (".txt", ".jsonl", ".json", ".md", ".text") or source.startswith((".", "/", "~"))


def _read_data_set(wanted: DataSet, tokenizer: Tokenizer, tokens: int | None) -> TokenText:
    label = ":".join(part for part in (wanted.name, wanted.config, wanted.split) if part)
    documents = _documents(wanted, label)
    ids: list[int] = []
    while tokens is None or len(ids) < tokens:
        batch = list(itertools.islice(documents, _DOCUMENTS))
        if not batch:
            break
        # Lines of WikiText and whole articles alike: what follows is another paragraph.
        ids += tokenizer.encode("\n\n".join(batch) + "\n\n", add_special_tokens=False)
    if not ids:
        raise TextError(f"data set {label} holds no text")
    return TokenText(np.asarray(ids, dtype=np.int64), text_prefix(tokenizer), f"data set {label}")


def _documents(wanted: DataSet, label: str) -> Iterator[str]:
    """Its nonempty texts in order, fetched as they are asked for."""
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{label} is no file, and data sets need a package that is not installed: pip install "
            "'tightpack[datasets]'; or give a text file",
            name="datasets",
        ) from error
    try:
        rows = datasets.load_dataset(wanted.name, wanted.config, split=wanted.split, streaming=True)
        for number, row in enumerate(rows):
            text = _text_of(row, label, number)
            if text.strip():
                yield text.strip("\n")
    except TextError:
        raise
    except Exception as error:  # the library and what it fetches with raise dozens of kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TextError(
            f"{label} is no file, and could not be read as a data set of the Hugging Face hub: {reason}; "
            "check the name and the network, or give a text file"
        ) from error


def _text_of(row: Any, label: str, number: int) -> str:
    text = row.get("text")
    if not isinstance(text, str):
        raise TextError(
            f'data set {label}: row {number} has no string field "text"; it has {", ".join(sorted(row))}'
        )
    return text
