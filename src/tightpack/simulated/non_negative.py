"""Least squares with coefficients that cannot be negative (Lawson and Hanson 1974, chapter 23)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


def non_negative_least_squares(matrix: Vector, target: Vector) -> Vector:
    """The x >= 0 that minimises |matrix x - target|, matrix [rows, columns], target [rows]. Columns of zeros
    get a coefficient of 0."""
    scale = np.linalg.norm(matrix, axis=0)
    scale[scale == 0] = 1.0
    scaled = matrix / scale
    count = matrix.shape[1]
    tolerance = 1e-10 * max(1.0, float(np.linalg.norm(target)))
    solution = np.zeros(count)
    free = np.zeros(count, dtype=bool)  # the coefficients that are not held at 0
    for _ in range(10 * count):  # it ends by itself after about as many rounds as there are columns
        gradient = scaled.T @ (target - scaled @ solution)
        gradient[free] = -np.inf
        best = int(np.argmax(gradient))
        if gradient[best] <= tolerance:
            break
        free[best] = True
        while True:
            trial = np.zeros(count)
            trial[free] = np.linalg.lstsq(scaled[:, free], target, rcond=None)[0]
            negative = free & (trial <= 0)
            if not negative.any():
                solution = trial
                break
            # As far towards the trial as all stay at 0 or above; what reaches 0 is held there.
            steps = solution[negative] / (solution[negative] - trial[negative])
            solution += float(steps.min()) * (trial - solution)
            free &= solution > 1e-15
            solution[~free] = 0.0
    result: Vector = solution / scale
    return result
