from __future__ import annotations

import pytest

from tightpack.planning.fits import fits
from tightpack.planning.models import open_model
from tightpack.planning.nowhere import require_somewhere
from tightpack.planning.weight_choices import WEIGHT_CHOICES
from tightpack.simulated.catalogue import load_catalogue


def test_a_70b_needs_four_cards_in_16_bits_two_in_8_and_one_in_4(llama70b, new_deployments):
    rows = {fit.precision: fit for fit in fits(new_deployments(llama70b), 8192)}
    assert {name: fit.devices for name, fit in rows.items()} == {
        "bf16": 4,  # 141 GB: two cards would hold it, and no cache beside
        "fp8": 2,
        "w8a8": 2,
        "int8": 2,
        "int4": 1,
    }
    assert rows["bf16"].kv_bytes_per_token == 320 * 1024
    # 72 GB a card, 36.3 of weights in it: what is left over, less a step's activations, is the cache's.
    assert rows["fp8"].max_tokens_in_cache == pytest.approx(
        2 * (72e9 - 36.3e9 - 1.4e9) / (320 * 1024), rel=0.02
    )


def test_an_8_bit_cache_holds_twice_the_tokens(llama70b, new_deployments):
    found = fits(new_deployments(llama70b, precisions=("fp8",), kv=("auto", "fp8", "int8")), 8192)
    tokens = {fit.kv_cache_dtype: fit.max_tokens_in_cache for fit in found}
    assert tokens["fp8"] == pytest.approx(2 * tokens["auto"], rel=1e-4)
    assert 0.95 * tokens["fp8"] < tokens["int8"] < tokens["fp8"]  # a scale a token and head


def test_precisions_that_a_device_cannot_compute_are_left_out(llama70b, new_deployments):
    names = {fit.precision for fit in fits(new_deployments(llama70b, devices=("a100-80gb",)), 8192)}
    assert names == {"bf16", "w8a8", "int8", "int4"}


def test_what_fits_nowhere_is_refused_with_what_would_fit(new_deployments):
    model = open_model("llama-3.1-405b")
    catalogue = load_catalogue()
    asked = fits(new_deployments(model, devices=("l4",)), 8192)
    everywhere = fits(new_deployments(model, devices=tuple(catalogue.devices)), 8192)
    with pytest.raises(ValueError, match=r"217 GB in int4, .*8 x l4 hold 192 GB.*int4 on 4 x h100-sxm"):
        require_somewhere(asked, everywhere, model, [catalogue["l4"]], (), 8192)
    with pytest.raises(ValueError, match="the next smaller model that is known is mixtral-8x22b"):
        require_somewhere(asked, asked, model, [catalogue["l4"]], (), 8192)
    require_somewhere(everywhere, everywhere, model, [catalogue["l4"]], (), 8192)


def test_a_precision_without_arithmetic_is_refused_with_what_there_is(llama70b):
    a100 = load_catalogue()["a100-80gb"]
    with pytest.raises(ValueError, match="fp8 arithmetic is needed, and a100-80gb has bf16, int8"):
        require_somewhere([], [], llama70b, [a100], [WEIGHT_CHOICES["fp8"]], 8192)
