"""Tokenizers from GGUF metadata and tokenizer.json, against transformers'."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers

from tightpack.checkpoints.checkpoint import CheckpointError
from tightpack.checkpoints.open import bundled_gguf, open_checkpoint
from tightpack.checkpoints.tokenizer import Tokenizer

TEXTS = [
    "Hello, world!",
    "def f(x):\n    return x ** 2  # squared\n\n\tprint(f(3))",
    "\t\ttabs  and    spaces   ",
    "emoji 😀👩‍👩‍👧‍👦 🇫🇷 and é as two: e\u0301",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|> <|im_end",
    "café naïve 北京 русский العربية हिन्दी",
    "I'm you're we'll DON'T 123 45.6e-7 0x1F",
    " leading, trailing ",
    "\n\n\n",
    "\r\n mixed \x00\x7f\u200b",
    "",
]


@pytest.fixture(scope="module")
def smollm() -> Tokenizer:
    return open_checkpoint("smollm2-135m").tokenizer


@pytest.fixture(scope="module")
def theirs() -> Any:
    path = bundled_gguf()
    return transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def test_ids_are_those_of_transformers(smollm: Tokenizer, theirs: Any) -> None:
    for text in TEXTS:
        assert smollm.encode(text) == theirs.encode(text), text
        assert smollm.decode(smollm.encode(text)) == theirs.decode(
            theirs.encode(text), skip_special_tokens=True
        )
    assert smollm.vocab_size == len(theirs)
    assert (smollm.bos_token_id, smollm.eos_token_ids) == (1, (2,))


def test_digits_are_single_words_as_the_model_was_trained(smollm: Tokenizer) -> None:
    """The published tokenizer.json splits digits off before words, so spaces before a digit stay together;
    transformers' reading of the GGUF leaves that out, and would split one off."""
    space, two, digits = smollm.encode("  ")[0], "2", smollm.encode("22")
    assert smollm.encode("a  22") == [*smollm.encode("a"), space, *digits]
    assert digits == smollm.encode(two) * 2


@pytest.fixture(scope="module")
def known_bytes(smollm: Tokenizer) -> set[bytes]:
    """SmolLM2's vocabulary lacks 21 of the 256 bytes, of control characters and rare planes, and drops
    them."""
    return {smollm.token_bytes(i) for i in range(smollm.vocab_size)}


@settings(max_examples=100, deadline=None)
@given(text=st.text())
def test_text_comes_back(smollm: Tokenizer, known_bytes: set[bytes], text: str) -> None:
    text = "".join(c for c in text if all(bytes([b]) in known_bytes for b in c.encode()))
    ids = smollm.encode(text)
    assert smollm.decode(ids, skip_special_tokens=False) == text
    assert b"".join(smollm.token_bytes(i) for i in ids).decode() == text


def test_token_bytes_hold_parts_of_characters(smollm: Tokenizer) -> None:
    ids = smollm.encode("𓀀")
    assert len(ids) > 1
    parts = [smollm.token_bytes(i) for i in ids]
    assert b"".join(parts) == "𓀀".encode()
    assert smollm.decode(ids[:1]) == "\ufffd"


def test_special_tokens(smollm: Tokenizer) -> None:
    assert smollm.encode("<|im_end|>") == [2]
    assert smollm.token_bytes(2) == b"<|im_end|>"
    assert smollm.decode([2]) == ""
    assert smollm.decode([2], skip_special_tokens=False) == "<|im_end|>"
    assert 2 in smollm.special_token_ids
    assert smollm.kind == "byte-level BPE"


def test_ids_beyond_the_vocabulary_stand_for_nothing(smollm: Tokenizer) -> None:
    assert smollm.token(10**6) is None
    assert smollm.token_bytes(10**6) == b""
    assert smollm.decode([10**6]) == ""


def sentencepiece_like(prefix: bool) -> tuple[tokenizers.Tokenizer, list[str], list[float], list[int]]:
    """A tokenizer of Llama 2's kind, and the pieces, scores and types that a GGUF holds for it."""
    words = ["▁t", "he", "▁the", "▁c", "at", "▁cat", "▁s", "▁sat"]
    letters = [*"▁abcdefghijklmnopqrstuvwxyz"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words, *letters]
    scores = [0.0] * 259 + [-float(i) for i in range(len(words))] + [-1e4] * len(letters)
    types = [2, 3, 3] + [6] * 256 + [1] * (len(words) + len(letters))
    merges = [
        ("▁", "t"),
        ("h", "e"),
        ("▁t", "he"),
        ("▁", "c"),
        ("a", "t"),
        ("▁c", "at"),
        ("▁", "s"),
        ("▁s", "at"),
    ]
    backend = tokenizers.Tokenizer(
        models.BPE(
            {piece: i for i, piece in enumerate(pieces)},
            merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prepend = [normalizers.Prepend("▁")] if prefix else []
    backend.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<s>", "</s>")])
    return backend, pieces, scores, types


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_kind(prefix: bool, gguf_of: Callable[[str], Any], tmp_path: Path) -> None:
    backend, pieces, scores, types = sentencepiece_like(prefix)
    builder = gguf_of("llama")
    for name in ("pre", "merges"):
        del builder.metadata[f"tokenizer.ggml.{name}"]
    builder.metadata |= {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_space_prefix": prefix,
    }
    tokenizer = open_checkpoint(str(builder.write(tmp_path / "model.gguf"))).tokenizer
    assert tokenizer.kind == "BPE with byte fallback"
    for text in ["the cat sat", "cats  the", "a 😀 é", "hethe</s> the", ""]:
        wanted = backend.encode(text).ids
        assert tokenizer.encode(text, add_special_tokens=False) == wanted
        assert tokenizer.encode(text) == [1, *wanted]
        assert tokenizer.decode(wanted, skip_special_tokens=False) == backend.decode(
            wanted, skip_special_tokens=False
        )
        joined = b"".join(tokenizer.token_bytes(i) for i in wanted).decode()
        assert joined.lstrip(" ") == text.replace("</s> the", "</s>" + " " * (1 + prefix) + "the").lstrip(" ")
    assert tokenizer.token_bytes(3 + 0xE9) == b"\xe9"
    builder.metadata["tokenizer.ggml.add_bos_token"] = False
    builder.metadata["tokenizer.ggml.add_eos_token"] = True
    tokenizer = open_checkpoint(str(builder.write(tmp_path / "ends.gguf"))).tokenizer
    assert tokenizer.encode("the")[-1] == 2
    assert tokenizer.encode("the")[0] != 1


WORDS = {
    # Each family's way with digits, contractions, spaces and line breaks, as its published pattern splits
    # them.
    "smollm": ["Don", "'t", " stop", "  ", "1", "2", "3", "!", "\n", "\n", "Ok"],
    "gpt-2": ["Don", "'t", " stop", " ", " 123", "!", "\n", "\n", "Ok"],
    "llama-bpe": ["Don", "'t", " stop", " ", " ", "123", "!\n\n", "Ok"],
    "qwen2": ["Don", "'t", " stop", " ", " ", "1", "2", "3", "!\n\n", "Ok"],
    "tekken": ["Don", "'t", " stop", " ", " ", "1", "2", "3", "!\n\n", "Ok"],
}


@pytest.mark.parametrize("name", WORDS)
def test_splits_of_the_byte_level_families(name: str, gguf_of: Callable[[str], Any], tmp_path: Path) -> None:
    builder = gguf_of("llama")
    builder.metadata["tokenizer.ggml.pre"] = name
    tokenizer = open_checkpoint(str(builder.write(tmp_path / "model.gguf"))).tokenizer
    pieces = tokenizer.backend.pre_tokenizer.pre_tokenize_str("Don't stop  123!\n\nOk")
    decoder = decoders.ByteLevel()
    assert [decoder.decode([piece]) for piece, _ in pieces] == WORDS[name]
    starts = tokenizer.encode("the")[0] == tokenizer.bos_token_id
    assert starts == (name in ("llama-bpe", "tekken"))


def test_end_of_turn_named_by_the_template(gguf_of: Callable[[str], Any], tmp_path: Path) -> None:
    builder = gguf_of("llama")
    builder.metadata["tokenizer.ggml.tokens"][318] = "<end_of_turn>"
    builder.metadata["tokenizer.ggml.token_type"][318] = 3
    builder.metadata["tokenizer.chat_template"] = "{{ messages[0].content }}<end_of_turn>"
    builder.metadata["tokenizer.ggml.eot_token_id"] = 5
    checkpoint = open_checkpoint(str(builder.write(tmp_path / "model.gguf")))
    assert checkpoint.spec.eos_token_ids == (1, 5, 318)


def test_directory_against_transformers(directory_of: Callable[[str], Path]) -> None:
    directory = directory_of("llama")
    tokenizer = open_checkpoint(str(directory)).tokenizer
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    for text in TEXTS:
        assert tokenizer.encode(text) == theirs.encode(text)
    assert tokenizer.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}


def test_files_around_tokenizer_json(directory_of: Callable[[str], Path], tmp_path: Path) -> None:
    directory = Path(shutil.copytree(directory_of("llama"), tmp_path / "llama"))
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text())
    size = open_checkpoint(str(directory)).tokenizer.vocab_size
    config["add_bos_token"] = True
    config["bos_token"] = {"content": "<s>", "special": True}
    config["added_tokens_decoder"] = {str(size): {"content": "<tool>", "special": False}}
    path.write_text(json.dumps(config))
    tokenizer = open_checkpoint(str(directory)).tokenizer
    assert tokenizer.encode("<tool>") == [0, size]
    assert tokenizer.encode("<tool>", add_special_tokens=False) == [size]
    config["added_tokens_decoder"] = {str(size + 5): {"content": "<tool>"}}
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"'<tool>' the id {size + 5}, but the next free id"):
        open_checkpoint(str(directory))
