"""Eight bits: small, near, and harmless where they are not to be had."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from flowray.routing import quantization
from flowray.routing.features import featurise
from flowray.routing.network import tensors
from flowray.routing.quantization import BLOCK, compressed, crossover, expanded, quantized, size_bytes

from .routers import trades, trained

MATRIX = arrays.arrays(
    np.float32, st.tuples(st.integers(0, 40), st.integers(0, 5)), elements=st.floats(-1e6, 1e6, width=32)
)


@given(MATRIX)
def test_a_weight_is_off_by_at_most_half_a_step_of_its_block(matrix):
    back = expanded(compressed({"m": matrix}))["m"]
    assert back.shape == matrix.shape
    for at in range(0, len(matrix), BLOCK):
        step = np.abs(matrix[at : at + BLOCK]).max(initial=0) / 127
        assert (np.abs(back[at : at + BLOCK] - matrix[at : at + BLOCK]) <= 0.5 * step * 1.001 + 1e-30).all()


@given(MATRIX)
def test_what_was_rounded_once_is_not_moved_again(matrix):
    once = expanded(compressed({"m": matrix}))
    np.testing.assert_allclose(expanded(compressed(once))["m"], once["m"], rtol=1e-6, atol=1e-30)


def test_vectors_and_numbers_stay_as_they_are():
    whole = {"bias": np.ones(7, np.float32), "rows": np.arange(5), "one": np.ones((), np.float32)}
    assert expanded(compressed(whole)) == whole


def test_a_network_of_half_a_million_weights_is_three_quarters_smaller():
    state = {"bag": np.random.default_rng(0).normal(size=(8_192, 64)).astype(np.float32), "bias": np.ones(300, "f4")}
    assert 1 - size_bytes(compressed(state)) / size_bytes(state) >= 0.745


def test_the_quantized_network_answers_nearly_the_same():
    network = trained().network
    small = quantized(network)
    if small is None:
        pytest.skip("this torch has no int8 layers")
    test = trades().split("test")
    with torch.inference_mode():
        mine, theirs = (
            torch.softmax(each.labels(*tensors(featurise(test.tasks)))["task_type"], 1) for each in (network, small)
        )
    assert float((mine - theirs).abs().max()) < 0.05


def test_a_torch_without_int8_layers_gives_none(monkeypatch):
    def gone(*_, **__):
        raise AttributeError("module 'torch.ao' has no attribute 'quantization'")

    monkeypatch.setattr(quantization.torch.ao.quantization, "quantize_dynamic", gone)
    assert quantized(trained().network) is None


@pytest.mark.parametrize(("from_batch", "expected"), [(8, 8), (1, 1), (1000, None)])
def test_the_crossover_is_where_int8_begins_to_win(from_batch, expected, monkeypatch):
    spent = {False: 1.0, True: 0.5}
    run_of = []

    def timed(call):
        int8, batch = call.args
        run_of.append(call)
        return spent[int8] if batch >= from_batch or not int8 else 2.0

    monkeypatch.setattr(quantization, "_timed", timed)
    assert crossover(lambda int8, batch: None) == expected
