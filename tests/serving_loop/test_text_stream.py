"""Text comes whole, once, and without stop strings, however tokens cut it."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from tightpack.requests.outputs import TokenLogprobs, Update
from tightpack.requests.sampling_params import SamplingParams
from tightpack.serving_loop.text_stream import CompletionDelta, CompletionStream


def decode_bytes(token_ids: Sequence[int]) -> str:
    """A tokenizer of one token a byte, the hardest case for characters of several tokens."""
    return bytes(token_ids).decode(errors="replace")


def stream_bytes(
    data: bytes, params: SamplingParams, sizes: Sequence[int] = (), finish_reason: str = "length"
) -> list[CompletionDelta]:
    """Feed `data` a byte a token, in updates of the given sizes (then one a token)."""
    stream = CompletionStream(0, params, decode_bytes)
    deltas, at = [], 0
    sizes_left = list(sizes)
    while at < len(data) and not stream.finished:
        size = min(sizes_left.pop(0) if sizes_left else 1, len(data) - at)
        piece = data[at : at + size]
        at += size
        reason = finish_reason if at == len(data) else None
        logprobs = tuple(TokenLogprobs(b, -0.5, 1) for b in piece)
        deltas.append(stream.push(Update("r", tuple(piece), 0.0, logprobs, finish_reason=reason)))
    return deltas


def text_of(deltas: Sequence[CompletionDelta]) -> str:
    return "".join(d.text for d in deltas)


def test_a_character_of_several_tokens_is_held_back_until_it_is_whole() -> None:
    deltas = stream_bytes("a🙂b".encode(), SamplingParams())
    assert [d.text for d in deltas] == ["a", "", "", "", "🙂", "b"]


def test_an_unfinished_character_comes_as_replacement_at_the_end() -> None:
    deltas = stream_bytes("é".encode()[:1], SamplingParams())
    assert text_of(deltas) == "�"
    assert deltas[-1].finish_reason == "length"


def test_a_stop_string_across_tokens_is_never_shown_in_part() -> None:
    deltas = stream_bytes(b"one STOP two", SamplingParams(stop=["STOP"]))
    assert text_of(deltas) == "one "
    assert not any("S" in d.text for d in deltas)
    assert (deltas[-1].finish_reason, deltas[-1].stop_reason) == ("stop", "STOP")


def test_what_looked_like_a_stop_string_is_shown_once_it_is_not() -> None:
    deltas = stream_bytes(b"STOUT", SamplingParams(stop=["STOP"]))
    assert [d.text for d in deltas] == ["", "", "", "STOU", "T"]


def test_the_stop_string_is_kept_when_asked_for() -> None:
    deltas = stream_bytes(b"ab--cd", SamplingParams(stop="--", include_stop_str_in_output=True))
    assert text_of(deltas) == "ab--"


def test_the_earliest_of_several_stop_strings_wins() -> None:
    deltas = stream_bytes(b"x,y;z", SamplingParams(stop=[";", ","]), sizes=[5])
    assert text_of(deltas) == "x"
    assert deltas[-1].stop_reason == ","


def test_a_stop_string_before_min_tokens_does_not_end_the_output() -> None:
    deltas = stream_bytes(b"a.b.c", SamplingParams(stop=".", min_tokens=3))
    assert text_of(deltas) == "a.b"


def test_the_text_of_a_stop_token_is_left_out() -> None:
    stream = CompletionStream(0, SamplingParams(stop_token_ids=[33]), decode_bytes)
    delta = stream.push(Update("r", (104, 105, 33), 0.0, finish_reason="stop", stop_reason=33))
    assert (delta.text, delta.token_ids, delta.stop_reason) == ("hi", (104, 105, 33), 33)


def test_tokens_and_logprobs_of_a_cut_stop_string_are_left_out_but_counted() -> None:
    deltas = stream_bytes(b"hi<end>", SamplingParams(stop="<end>", logprobs=0))
    assert [t for d in deltas for t in d.token_ids] == list(b"hi")
    assert sum(len(d.logprobs) for d in deltas) == 2
    assert deltas[-1].num_output_tokens == 7


@settings(max_examples=300, derandomize=True, deadline=None)
@given(
    text=st.text(alphabet="abS TOP é🙂", max_size=40),
    stop=st.lists(st.text(alphabet="abSTOP é🙂", min_size=1, max_size=4), max_size=3),
    sizes=st.lists(st.integers(1, 7), max_size=20),
)
def test_however_tokens_are_grouped_the_text_is_what_a_search_in_the_whole_would_give(
    text: str, stop: list[str], sizes: list[int]
) -> None:
    data = text.encode()
    if not data:
        return
    deltas = stream_bytes(data, SamplingParams(stop=stop), sizes)
    # The stop string that is complete first wins, and of those complete at once the one that began first.
    ends = sorted((text.find(s) + len(s), text.find(s)) for s in stop if s in text)
    shown = text_of(deltas)
    if ends:
        assert deltas[-1].finish_reason == "stop"
        assert shown == text[: ends[0][1]]
    else:
        assert shown == text
        assert [t for d in deltas for t in d.token_ids] == list(data)
        assert deltas[-1].finish_reason == "length"
