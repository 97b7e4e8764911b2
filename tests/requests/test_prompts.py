from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tightpack.requests.prompts import as_conversations, as_prompt_list, text_or_token_ids

HELLO = {"role": "user", "content": "hello"}


def test_one_prompt_or_many_of_any_sequence() -> None:
    assert as_prompt_list("a") == ["a"]
    assert as_prompt_list({"prompt": "a"}) == [{"prompt": "a"}]
    assert as_prompt_list(("a", "b")) == ["a", "b"]
    assert as_prompt_list([]) == []


@pytest.mark.parametrize("ids", [[5, 6], (5, 6), np.array([5, 6]), [np.int64(5), np.int32(6)]])
def test_token_ids_are_integers_of_any_make(ids: Any) -> None:
    found = text_or_token_ids({"prompt_token_ids": ids})
    assert found == [5, 6]
    assert {type(one) for one in found} == {int}


@pytest.mark.parametrize("ids", [[5, "6"], [5.0], [True]])
def test_anything_else_is_no_token_id(ids: Any) -> None:
    with pytest.raises(TypeError, match="each of prompt_token_ids must be an integer"):
        text_or_token_ids({"prompt_token_ids": ids})


@pytest.mark.parametrize("bare", [[5, 6], np.array([5, 6])])
def test_bare_token_ids_are_refused_with_the_right_form(bare: Any) -> None:
    with pytest.raises(TypeError, match=r"is written .*prompt_token_ids"):
        as_prompt_list(bare)


def test_one_conversation_or_many() -> None:
    assert as_conversations([HELLO]) == [[HELLO]]
    assert as_conversations([[HELLO], (HELLO, HELLO)]) == [[HELLO], [HELLO, HELLO]]


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    assert as_conversations([{"role": "user", "content": parts}]) == [
        [{"role": "user", "content": "hel\nlo"}]
    ]


@pytest.mark.parametrize(
    ("messages", "error", "message"),
    [
        ([], ValueError, "messages is empty"),
        (HELLO, TypeError, "messages is a list of messages"),
        ("hello", TypeError, "messages is a list of messages"),
        (
            [{"role": "user", "content": [{"type": "image_url"}]}],
            ValueError,
            "'type': 'text'.*got .*image_url",
        ),
    ],
)
def test_what_is_no_conversation_is_refused(messages: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        as_conversations(messages)
