"""Weights in the layouts that the Triton kernels read, made once at load from `schemes`' numbers.

Whatever layout a checkpoint has (GPTQ's, AWQ's, compressed-tensors', GGUF's), `schemes` has made codes one a
byte of it, and here they become one of three:

4 bits   int16 [outputs / 64, inputs / 128, 64, 32]: tiles of 64 outputs by 128 inputs, 4 KiB in one piece, so
         that loads are whole cache lines and a program's tiles lie one after the other. Word j of a tile's
         row holds the codes of inputs j, j + 32, j + 64 and j + 96, low bits first: shifted by a nibble, the
         words of a tile are the next 32 columns, in the very registers that a tensor core takes them from,
         and two codes are unpacked by one operation (see `kernels.arithmetic.nibble`).
8 bits   int8 or float8_e4m3fn [outputs, inputs] as they are: inputs side by side is what the 8-bit tensor
         cores ask of both operands.
scales   [groups, outputs], so that a tile's outputs read neighbours; in float16 or bfloat16 where that holds
         them exactly, else in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tightpack.schemes.quantized import DenseWeight, Fp8Weight, IntWeight
from tightpack.torch_backend.arrays import as_tensor
from tightpack.torch_backend.row_order import RowOrder

OUTPUTS_A_TILE = 64
INPUTS_A_TILE = 128
_WORDS_A_ROW = 32
# Groups that are whole words' worth of inputs and never straddle a tile unevenly.
_SHORT_GROUPS = (32, 64)
# Rows that are packed at a time, so that the intermediate integers stay small.
_ROWS_AT_A_TIME = 4096


@dataclass(frozen=True, slots=True)
class PackedInt4:
    """W[n, k] = (code - zeros[g, n]) * scales[g, n] + minimums[g, n], with zeros of 8 where there are none.

    codes: int16 [ceil(outputs / 64), ceil(inputs / 128), 64, 32], or with experts before; see above.
    scales: [groups, padded outputs]; zeros: uint8 or None; minimums: float or None, and then no zeros count.
    group: inputs that share a scale, 0 for all of them.
    order: int64 [inputs], the input that lies at each place (GPTQ's desc_act); None for their own order.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    minimums: Tensor | None
    outputs: int
    inputs: int
    group: int
    order: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Packed8:
    """W[n, k] = (codes[n, k] - zeros[g, n]) * scales[g, n].

    codes: int8 or float8_e4m3fn [outputs, inputs]. scales: [groups, outputs]. zeros: int16 or None.
    group: inputs that share a scale, 0 for all of them.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    group: int

    @property
    def outputs(self) -> int:
        return self.codes.shape[0]

    @property
    def inputs(self) -> int:
        return self.codes.shape[1]


def int4_fits(weight: IntWeight) -> bool:
    """Whether `pack_int4` takes it: groups of 32, 64, a multiple of 128 or a whole row."""
    inputs, group = weight.shape[1], weight.group_size
    if weight.bits != 4:
        return False
    if weight.group_of_input is not None and not _equal_groups(weight):
        return False
    return group >= inputs or group in _SHORT_GROUPS or group % INPUTS_A_TILE == 0


def int4_key(weight: IntWeight) -> tuple[object, ...]:
    """Weights with equal keys can lie one below the other in a packed one."""
    order = None if weight.group_of_input is None else weight.group_of_input.tobytes()
    return (weight.shape[1], min(weight.group_size, weight.shape[1]), weight.minimums is not None, order)


def pack_int4(weights: Sequence[IntWeight], orders: Sequence[RowOrder], device: torch.device) -> PackedInt4:
    """Weights of one `int4_key`, one below the other, on the device. orders: what permutes each's rows."""
    first = weights[0]
    inputs = first.shape[1]
    group = 0 if first.group_size >= inputs else first.group_size
    place = None
    if first.group_of_input is not None:
        # Stable: inputs of a group keep their order.
        place = torch.from_numpy(first.group_of_input).argsort(stable=True)
    columns = None if place is None else place.to(device)
    asymmetric = any(weight.zeros is not None for weight in weights)
    codes = torch.cat(
        [
            _tiled_later(order(_unsigned(weight)), columns, device)
            for weight, order in zip(weights, orders, strict=True)
        ]
    )
    zeros = None
    if asymmetric:
        zeros = [
            torch.full(w.scales.shape, 8, dtype=torch.uint8) if w.zeros is None else as_tensor(w.zeros)
            for w in weights
        ]
    groups = -(-codes.shape[1] // INPUTS_A_TILE) * INPUTS_A_TILE // group if group else 1
    groups = max(groups, first.scales.shape[1])
    minimums = [as_tensor(w.minimums) for w in weights if w.minimums is not None]
    return PackedInt4(
        codes=_in_tiles(codes),
        scales=_by_group([as_tensor(w.scales) for w in weights], orders, groups, device),
        zeros=None if zeros is None else _by_group(zeros, orders, groups, device),
        minimums=_by_group(minimums, orders, groups, device) if minimums else None,
        outputs=len(codes),
        inputs=inputs,
        group=group,
        order=columns,
    )


def stack_experts(experts: Sequence[PackedInt4]) -> PackedInt4:
    """Experts of equal shapes as one weight whose tensors have the expert before all else."""
    first = experts[0]
    if first.order is not None:
        raise ValueError("experts with groups that are not contiguous (desc_act) cannot be stacked")
    float_scales = [expert.scales.dtype for expert in experts]
    scales = first.scales.dtype if len(set(float_scales)) == 1 else torch.float32
    zeros = [e.zeros for e in experts if e.zeros is not None]
    minimums = [e.minimums for e in experts if e.minimums is not None]
    return PackedInt4(
        codes=torch.stack([e.codes for e in experts]),
        scales=torch.stack([e.scales.to(scales) for e in experts]),
        zeros=torch.stack(zeros) if zeros else None,
        minimums=torch.stack([each.float() for each in minimums]) if minimums else None,
        outputs=first.outputs,
        inputs=first.inputs,
        group=first.group,
    )


def unpack_int4(packed: PackedInt4, expert: int | None = None) -> Tensor:
    """float32 [outputs, inputs] again, its inputs in their own order. expert: of stacked ones."""
    codes, scales, zeros, minimums = packed.codes, packed.scales, packed.zeros, packed.minimums
    if expert is not None:
        codes, scales = codes[expert], scales[expert]
        zeros = None if zeros is None else zeros[expert]
        minimums = None if minimums is None else minimums[expert]
    words = codes.to(torch.int32)
    quarters = torch.stack([(words >> (4 * i)) & 15 for i in range(4)], 3)
    values = quarters.permute(0, 2, 1, 3, 4).reshape(scales.shape[1], -1).float()
    width = values.shape[1]
    group = torch.arange(width, device=codes.device) // (packed.group or width)
    if minimums is None:
        values -= 8.0 if zeros is None else zeros[group].t().float()
    values *= scales[group].t().float()
    if minimums is not None:
        values += minimums[group].t().float()
    values = values[: packed.outputs, : packed.inputs]
    if packed.order is None:
        return values.contiguous()
    out = torch.empty_like(values)
    out[:, packed.order] = values
    return out


def eight_bits_fit(weight: IntWeight | Fp8Weight) -> bool:
    """Whether `pack_8` takes it: scales of groups of 32, 64 or a multiple of 128 inputs, or of whole rows."""
    inputs = weight.shape[1]
    group = weight.block[1] if isinstance(weight, Fp8Weight) else weight.group_size
    if isinstance(weight, IntWeight) and (
        weight.bits != 8 or weight.group_of_input is not None or weight.minimums is not None
    ):
        return False
    return group >= inputs or group in _SHORT_GROUPS or group % INPUTS_A_TILE == 0


def scaled_by_row(weight: DenseWeight | IntWeight | Fp8Weight, precision: str) -> bool:
    """Whether the weight has 8-bit codes of the precision, "int8" or "fp8", symmetric, with scales of whole
    rows: what the products of two 8-bit operands take."""
    if isinstance(weight, Fp8Weight):
        return precision == "fp8" and weight.block[1] >= weight.shape[1]
    return (
        isinstance(weight, IntWeight)
        and precision == "int8"
        and weight.bits == 8
        and weight.symmetric
        and weight.scales.shape[1] == 1
    )


def pack_8(
    weights: Sequence[IntWeight | Fp8Weight], orders: Sequence[RowOrder], device: torch.device
) -> Packed8:
    """8-bit weights of one type and group size, one below the other, on the device."""
    inputs = weights[0].shape[1]
    groups_of = [w.block[1] if isinstance(w, Fp8Weight) else w.group_size for w in weights]
    group = 0 if groups_of[0] >= inputs else groups_of[0]
    codes, scales, zeros = [], [], []
    for weight in weights:
        if isinstance(weight, Fp8Weight):
            codes.append(as_tensor(weight.codes).view(torch.int8))
            rows = as_tensor(weight.scales).repeat_interleave(weight.block[0], 0)[: weight.shape[0]]
            scales.append(rows)
        elif weight.zeros is None:
            codes.append(as_tensor(weight.codes))
            scales.append(as_tensor(weight.scales))
            zeros.append(torch.zeros(weight.scales.shape, dtype=torch.int16))
        else:
            # 0 .. 255 less 128 is an int8.
            codes.append((as_tensor(weight.codes).to(torch.int16) - 128).to(torch.int8))
            scales.append(as_tensor(weight.scales))
            zeros.append(as_tensor(weight.zeros).to(torch.int16) - 128)
    stacked = torch.cat([order(c).to(device) for c, order in zip(codes, orders, strict=True)])
    if isinstance(weights[0], Fp8Weight):
        stacked = stacked.view(torch.float8_e4m3fn)
    asymmetric = any(isinstance(w, IntWeight) and w.zeros is not None for w in weights)
    groups = scales[0].shape[1]
    return Packed8(
        codes=stacked.contiguous(),
        scales=_by_group(scales, orders, groups, device, pad=False),
        zeros=_by_group(zeros, orders, groups, device, pad=False) if asymmetric else None,
        group=group,
    )


def narrowest(scales: Tensor) -> Tensor:
    """In float16 or bfloat16 where that loses nothing, else in float32."""
    for dtype in (torch.float16, torch.bfloat16):
        narrow = scales.to(dtype)
        if torch.equal(narrow.float(), scales.float()):
            return narrow
    return scales.float()


def _equal_groups(weight: IntWeight) -> bool:
    """Whether all groups have group_size inputs."""
    assert weight.group_of_input is not None
    counts = torch.from_numpy(weight.group_of_input).bincount(minlength=weight.scales.shape[1])
    return bool((counts == weight.group_size).all())


def _unsigned(weight: IntWeight) -> Tensor:
    codes = as_tensor(weight.codes)
    if weight.zeros is None and weight.minimums is None:
        return (codes + 8).to(torch.uint8)
    return codes.to(torch.uint8)


def _tiled_later(codes: Tensor, columns: Tensor | None, device: torch.device) -> Tensor:
    moved = codes.to(device)
    return moved if columns is None else moved.index_select(1, columns)


def _in_tiles(codes: Tensor) -> Tensor:
    """uint8 [outputs, inputs] below 16 to int16 tiles; what is beyond is 0."""
    outputs, inputs = codes.shape
    across, down = -(-inputs // INPUTS_A_TILE), -(-outputs // OUTPUTS_A_TILE)
    tiles = torch.empty((down, across, OUTPUTS_A_TILE, _WORDS_A_ROW), dtype=torch.int16, device=codes.device)
    for start in range(0, outputs, _ROWS_AT_A_TIME):
        rows = codes[start : start + _ROWS_AT_A_TIME]
        count = -(-len(rows) // OUTPUTS_A_TILE)
        padded = rows.new_zeros((count * OUTPUTS_A_TILE, across * INPUTS_A_TILE))
        padded[: len(rows), :inputs] = rows
        quarters = padded.view(count, OUTPUTS_A_TILE, across, 4, _WORDS_A_ROW).to(torch.int32)
        words = quarters[:, :, :, 0].clone()
        for i in range(1, 4):
            words |= quarters[:, :, :, i] << (4 * i)
        first = start // OUTPUTS_A_TILE
        tiles[first : first + count] = words.permute(0, 2, 1, 3).to(torch.int16)
    return tiles


def _by_group(
    parts: Sequence[Tensor],
    orders: Sequence[RowOrder],
    groups: int,
    device: torch.device,
    *,
    pad: bool = True,
) -> Tensor:
    """Parts [outputs, groups], one below the other, as [groups, outputs]; floats as narrow as they can be.

    pad: to whole tiles of outputs, and to `groups`, with zeros.
    """
    stacked = torch.cat([order(part).to(device) for part, order in zip(parts, orders, strict=True)])
    if stacked.is_floating_point():
        stacked = narrowest(stacked)
    if not pad:
        return stacked.t().contiguous()
    rows = -(-len(stacked) // OUTPUTS_A_TILE) * OUTPUTS_A_TILE
    out = stacked.new_zeros((groups, rows))
    out[: stacked.shape[1], : len(stacked)] = stacked.t()
    return out
