from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tightpack.calibration.prompt_attention import prompt_attention


@pytest.mark.parametrize("window", [1, 40, 128, 200, 300])
def test_tokens_see_themselves_and_the_window_before(window: int) -> None:
    """Against PyTorch's attention with a mask, at a length that no block divides."""
    generator = torch.Generator().manual_seed(4)
    queries = torch.randn(4, 3, 300, 16, generator=generator)
    keys, values = (torch.randn(4, 300, 16, generator=generator) for _ in range(2))
    places = torch.arange(300)
    behind = places[:, None] - places
    expected = functional.scaled_dot_product_attention(
        queries,
        keys[:, None].expand_as(queries),
        values[:, None].expand_as(queries),
        attn_mask=(behind >= 0) & (behind < window),
        scale=0.3,
    )
    found = prompt_attention(queries, keys, values, scale=0.3, window=window)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    narrow = (t.bfloat16() for t in (queries, keys, values))
    rounded = prompt_attention(*narrow, scale=0.3, window=window).float()
    assert (rounded - expected).norm() < 0.02 * expected.norm()
