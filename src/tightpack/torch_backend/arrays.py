"""numpy arrays as tensors, with ml_dtypes' types as PyTorch's."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def as_tensor(array: NDArray[Any]) -> Tensor:
    """A tensor over the array's memory, for reading; also ml_dtypes.bfloat16 and float8_e4m3fn."""
    array = np.ascontiguousarray(array)
    with warnings.catch_warnings():
        # The file is mapped read-only, which torch cannot express; nobody writes to this view.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        if array.dtype.name == "bfloat16":
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        if array.dtype.name == "float8_e4m3fn":
            return torch.from_numpy(array.view(np.uint8)).view(torch.float8_e4m3fn)
        return torch.from_numpy(array)
