"""Probabilities that mean what they say: one temperature, fitted on tasks that were not trained on.

Scaling the logits by one factor (Guo et al. 2017) mends over- and under-confidence and changes no order of agents; a
network whose inputs are calibrated rates needs no more, and more could not be fitted from a few hundred tasks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flowray.routing.estimates import Floats

BOUNDS = (0.25, 4.0)  # a factor beyond is a broken network, not a miscalibrated one
_STEPS = 60


def temperature(logits: Sequence[Floats], success: Sequence[Floats]) -> float:
    """The factor under which outcomes are least surprising, each set counting alike; 1 where there are none.

    The log loss is convex in the factor, so a golden-section search over its logarithm finds the least.
    """
    pairs = [
        (logit[known], np.where(outcome[known] > 0, 1.0, -1.0))
        for logit, outcome in zip(logits, success, strict=True)
        if (known := np.isfinite(outcome)).any()
    ]
    if not pairs:
        return 1.0

    def surprise(factor: float) -> float:
        return float(np.mean([np.logaddexp(0.0, -sign * logit * factor).mean() for logit, sign in pairs]))

    low, high = np.log(BOUNDS)
    golden = (np.sqrt(5.0) - 1.0) / 2.0
    for _ in range(_STEPS):
        left, right = high - golden * (high - low), low + golden * (high - low)
        if surprise(float(np.exp(left))) < surprise(float(np.exp(right))):
            high = right
        else:
            low = left
    return float(np.exp((low + high) / 2.0))
