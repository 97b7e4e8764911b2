"""A tokenizer and chat template from GGUF metadata.

Two kinds exist among the supported families: byte-level BPE (`gpt2`), whose way of splitting text into words
is named by `tokenizer.ggml.pre`, and SentencePiece's BPE with scores and byte fallback (`llama`). The
patterns are those of the models' published tokenizer.json.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from tightpack.checkpoints.chat_template import ChatTemplate
from tightpack.checkpoints.checkpoint import CheckpointError
from tightpack.checkpoints.gguf_file import GgufFile
from tightpack.checkpoints.tokenizer import Tokenizer

_CONTROL, _USER_DEFINED, _BYTE = 3, 4, 6

_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_WORDS = _LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN_WORDS = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _words(pattern: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False)
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _smollm() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


# tokenizer.ggml.pre -> (how text is split, whole words of the vocabulary taken without merging,
# begin-of-text by default)
PRE_TOKENIZERS: Mapping[str, tuple[Callable[[], pre_tokenizers.PreTokenizer], bool, bool]] = MappingProxyType(
    {
        "gpt-2": (_gpt2, False, False),
        "default": (_gpt2, False, False),
        "smollm": (_smollm, False, False),
        "llama-bpe": (lambda: _words(_LLAMA3_WORDS), True, True),
        "llama3": (lambda: _words(_LLAMA3_WORDS), True, True),
        "llama-v3": (lambda: _words(_LLAMA3_WORDS), True, True),
        "qwen2": (lambda: _words(_QWEN2_WORDS), False, False),
        "deepseek-r1-qwen": (lambda: _words(_QWEN2_WORDS), False, False),
        "tekken": (lambda: _words(_TEKKEN_WORDS), True, True),
    }
)
# Converters do not always say which token ends a turn (tokenizer.ggml.eot_token_id); these do, in the
# families' templates.
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>")


def gguf_tokenizer(file: GgufFile) -> Tokenizer:
    """Raises CheckpointError naming the metadata key that is missing or not supported."""
    metadata = file.metadata
    tokens = _required(file, "tokenizer.ggml.tokens")
    kind = metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        backend, adds_bos = _byte_level(file, tokens)
    elif kind == "llama":
        backend, adds_bos = _sentencepiece(file, tokens)
    else:
        raise CheckpointError(
            f"{file.path}: metadata 'tokenizer.ggml.model' is {kind!r}; supported: gpt2, llama"
        )
    ids = {role: _token_id(file, role) for role in ("bos", "eos", "unknown", "padding", "eot", "eom")}
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    texts = {name: tokens[i] for role, name in names.items() if (i := ids[role]) is not None}
    add = {
        "bos": ids["bos"] if bool(metadata.get("tokenizer.ggml.add_bos_token", adds_bos)) else None,
        "eos": ids["eos"] if bool(metadata.get("tokenizer.ggml.add_eos_token", False)) else None,
    }
    around = {role: (tokens[i], i) for role, i in add.items() if i is not None}
    if around:
        backend.post_processor = processors.TemplateProcessing(
            single=[*_piece(around, "bos"), "$A:0", *_piece(around, "eos")],
            special_tokens=list(around.values()),
        )
    sources = _templates(metadata)
    try:
        template = ChatTemplate(sources, texts) if sources else None
    except ValueError as error:
        raise CheckpointError(f"{file.path}: {error}") from error
    ends = [i for role in ("eos", "eot", "eom") if (i := ids[role]) is not None]
    ends += [
        i
        for text in _TURN_ENDS
        if (i := backend.token_to_id(text)) is not None and any(text in source for source in sources.values())
    ]
    return Tokenizer(
        backend, bos_token_id=ids["bos"], eos_token_ids=ends, chat_template=template, special_tokens=texts
    )


def _piece(around: Mapping[str, tuple[str, int]], role: str) -> list[str]:
    return [f"{around[role][0]}:0"] if role in around else []


def _byte_level(file: GgufFile, tokens: Sequence[str]) -> tuple[tokenizers.Tokenizer, bool]:
    name = _required(file, "tokenizer.ggml.pre")
    if name not in PRE_TOKENIZERS:
        raise CheckpointError(
            f"{file.path}: metadata 'tokenizer.ggml.pre' is {name!r}; supported: {', '.join(PRE_TOKENIZERS)}"
        )
    pre_tokenizer, ignore_merges, adds_bos = PRE_TOKENIZERS[name]
    merges = []
    for merge in _required(file, "tokenizer.ggml.merges"):
        left, _, right = merge.partition(" ")
        merges.append((left, right))
    backend = _tokenizer(file, tokens, merges, ignore_merges=ignore_merges)
    if name in ("qwen2", "deepseek-r1-qwen"):
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    _add_tokens(file, backend, tokens, normalized=False)
    return backend, adds_bos


def _sentencepiece(file: GgufFile, tokens: Sequence[str]) -> tuple[tokenizers.Tokenizer, bool]:
    """As transformers converts SentencePiece models: a merge for every way that a token splits into two
    others, best score first."""
    scores = _required(file, "tokenizer.ggml.scores")
    types = file.metadata.get("tokenizer.ggml.token_type")
    place = {token: i for i, token in enumerate(tokens)}
    found = []
    for i, token in enumerate(tokens):
        if types is not None and int(types[i]) in (_CONTROL, _BYTE):
            continue
        for cut in range(1, len(token)):
            left, right = place.get(token[:cut]), place.get(token[cut:])
            if left is not None and right is not None:
                found.append((-float(scores[i]), left, right))
    found.sort()
    merges = [(tokens[left], tokens[right]) for _, left, right in found]
    unknown = _token_id(file, "unknown")
    backend = _tokenizer(
        file,
        tokens,
        merges,
        unk_token=None if unknown is None else tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    prefixed = bool(file.metadata.get("tokenizer.ggml.add_space_prefix", True))
    space = "\u2581"
    prepend = [normalizers.Prepend(space)] if prefixed else []
    backend.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", space)])
    strip = [decoders.Strip(" ", 1, 0)] if prefixed else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(space, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    _add_tokens(file, backend, tokens, normalized=not prefixed)
    return backend, True


def _tokenizer(
    file: GgufFile, tokens: Sequence[str], merges: list[tuple[str, str]], **options: Any
) -> tokenizers.Tokenizer:
    try:
        model = models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges, **options)
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(
            f"{file.path}: metadata 'tokenizer.ggml.merges' does not fit the tokens: {error}"
        ) from error
    return tokenizers.Tokenizer(model)


def _add_tokens(
    file: GgufFile, backend: tokenizers.Tokenizer, tokens: Sequence[str], *, normalized: bool
) -> None:
    """Control tokens, and those the publisher adds that text may spell out whole."""
    types = file.metadata.get("tokenizer.ggml.token_type")
    if types is None:
        return
    if len(types) != len(tokens):
        raise CheckpointError(
            f"{file.path}: metadata 'tokenizer.ggml.token_type' has {len(types)} entries for {len(tokens)} "
            "tokens"
        )
    kinds = [int(kind) for kind in types]
    backend.add_special_tokens(
        [
            AddedToken(t, special=True, normalized=False)
            for t, k in zip(tokens, kinds, strict=True)
            if k == _CONTROL
        ]
    )
    backend.add_tokens(
        [
            AddedToken(t, normalized=normalized)
            for t, k in zip(tokens, kinds, strict=True)
            if k == _USER_DEFINED
        ]
    )


def _templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    prefix = "tokenizer.chat_template"
    sources = {
        key.removeprefix(f"{prefix}."): str(value)
        for key, value in metadata.items()
        if key.startswith(f"{prefix}.")
    }
    if metadata.get(prefix):
        sources["default"] = str(metadata[prefix])
    return sources


def _token_id(file: GgufFile, role: str) -> int | None:
    value = file.metadata.get(f"tokenizer.ggml.{role}_token_id")
    if value is None:
        return None
    if not 0 <= int(value) < len(file.metadata["tokenizer.ggml.tokens"]):
        raise CheckpointError(
            f"{file.path}: metadata 'tokenizer.ggml.{role}_token_id' is {value}, beyond the vocabulary"
        )
    return int(value)


def _required(file: GgufFile, key: str) -> Any:
    value = file.metadata.get(key)
    if value is None:
        raise CheckpointError(f"{file.path}: metadata {key!r} is missing")
    return value
