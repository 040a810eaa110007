"""Eight bits instead of thirty-two: a separate step after training, of which the network knows nothing.

On disk (`compressed`): each matrix as signed bytes with one scale per block of `BLOCK` rows, rows of like size together
in a block being what training makes of frequent and rare n-grams; vectors stay as they are.

In memory (`quantized`): torch's own dynamic int8 layers for what is multiplied. They are about to leave torch (pytorch
issue 184982), so a probe asks whether they still work, and where they do not the network stays in float32: a smaller
file, the same speed. Bags stay in float32 and are shared by both precisions: what is read of them are sums that are
kept per word (`flowray.routing.folding`), and a sum of bytes is no byte.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from flowray.routing.network import NetworkConfig, RoutingNetwork

BLOCK = 16  # rows that share a scale
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)  # at which both precisions are timed
_SCALE, _BYTES = ".scale", ".int8"

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """How far two precisions differ on some tasks."""

    n_tasks: int
    n_pairs: int  # of tasks and agents
    mean_error: float  # of a probability of success
    largest_error: float
    decisions_changed: float  # share of tasks whose most promising agent is another one
    labels_changed: float  # share of (task, head) whose most probable label is another one
    bytes_before: int
    bytes_after: int

    @property
    def reduction(self) -> float:
        """Share of the size that is saved."""
        return 1.0 - self.bytes_after / self.bytes_before


def arrays_of(network: RoutingNetwork) -> dict[str, npt.NDArray[Any]]:
    """A network's weights, to be written or compressed."""
    return {name: values.detach().numpy() for name, values in network.state_dict().items()}


def network_of(config: NetworkConfig, arrays: Arrays) -> RoutingNetwork:
    """The network of these weights, of either precision.

    Raises:
        KeyError, RuntimeError: they are those of another shape.
    """
    network = RoutingNetwork(config)
    network.load_state_dict({name: torch.from_numpy(np.array(values)) for name, values in expanded(arrays).items()})
    return network


def compressed(arrays: Arrays) -> dict[str, npt.NDArray[Any]]:
    """The arrays with every float32 matrix as bytes and scales."""
    small: dict[str, npt.NDArray[Any]] = {}
    for name, values in arrays.items():
        if values.ndim < 2 or values.dtype != np.float32:
            small[name] = values
            continue
        scale = np.repeat(scales := _scales(values), BLOCK)[: _rows(values), None]
        flat = np.rint(values.reshape(_rows(values), values.shape[-1]) / scale)
        small[name + _BYTES], small[name + _SCALE] = flat.astype(np.int8).reshape(values.shape), scales
    return small


def expanded(arrays: Arrays) -> dict[str, npt.NDArray[Any]]:
    """The other way round; arrays that were never compressed are unchanged."""
    whole = {}
    for name, values in arrays.items():
        if name.endswith(_BYTES):
            scale = np.repeat(arrays[name.removesuffix(_BYTES) + _SCALE], BLOCK)[: _rows(values), None]
            flat = values.reshape(_rows(values), values.shape[-1]).astype(np.float32) * scale
            whole[name.removesuffix(_BYTES)] = flat.reshape(values.shape)
        elif not name.endswith(_SCALE):
            whole[name] = values
    return whole


def size_bytes(arrays: Arrays) -> int:
    """Of the arrays, without the file around them."""
    return sum(values.nbytes for values in arrays.values())


def quantized(network: RoutingNetwork) -> RoutingNetwork | None:
    """A copy that computes with int8 weights; None where this torch or this processor cannot."""
    try:
        with _quietly():
            bags = (network.label_bag, network.meaning_bag, network.sense_bag)
            shared = [*(bag.weight for bag in bags), network.vocabulary, network.row_of, network.folds]
            small = copy.deepcopy(network, {id(part): part for part in shared}).eval()
            quantize_dynamic: Any = torch.ao.quantization.quantize_dynamic
            quantize_dynamic(small, {nn.Linear}, dtype=torch.qint8, inplace=True)
            small.in_numpy = False
            inputs = small.vocabulary[:4].clamp(min=0).long(), torch.tensor([0, 2, 4]), small.trait_mean.expand(2, -1)
            with torch.inference_mode():
                agree = all(
                    torch.allclose(mine, theirs, atol=0.25)
                    for mine, theirs in zip(
                        network.labels(*inputs).values(), small.labels(*inputs).values(), strict=True
                    )
                )
    except (RuntimeError, AttributeError, NotImplementedError, AssertionError, TypeError):
        return None  # what a torch says that has it no more, or a processor without the kernels
    return small if agree else None


def crossover(run: Callable[[bool, int], object], repeats: int = 5) -> int | None:
    """The smallest batch from which int8 is faster than float32; None if it never is.

    `run(int8, batch)` computes once. The fastest of several runs is compared: the rest is other processes.
    """
    faster: int | None = None
    for batch in reversed(_BATCHES):
        seconds = []
        for int8 in (False, True):
            run(int8, batch)
            seconds.append(min(_timed(partial(run, int8, batch)) for _ in range(repeats)))
        if seconds[1] >= seconds[0]:
            break
        faster = batch
    return faster


def _rows(values: npt.NDArray[Any]) -> int:
    """All dimensions but the last."""
    return int(np.prod(values.shape[:-1]))


def _scales(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """[blocks] the step of each block of rows: its largest number is 127 steps."""
    blocks = -(-_rows(values) // BLOCK)
    padded = np.zeros((blocks * BLOCK, values.shape[-1]), np.float32)
    padded[: _rows(values)] = values.reshape(_rows(values), values.shape[-1])
    largest = np.abs(padded).reshape(blocks, BLOCK * values.shape[-1]).max(axis=1, initial=0.0)
    scales: npt.NDArray[np.float32] = np.maximum(largest / 127.0, np.finfo(np.float32).tiny).astype(np.float32)
    return scales


def _timed(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


@contextmanager
def _quietly() -> Iterator[None]:
    """torch warns at every use that these layers will go; the probe above is the answer to that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
