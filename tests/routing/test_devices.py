"""Training elsewhere than on the CPU: nothing is left behind there, nothing is lost on the way home."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

from flowray.core.retraining import RetrainConfig
from flowray.errors import ConfigError
from flowray.routing import cards, devices, training
from flowray.routing.features import featurise
from flowray.routing.network import RoutingNetwork, tensors

from .routers import CONFIG, SHAPE, trades, trained

ELSEWHERE = "meta"  # the name that the stand-in goes by: the one that any torch has its bookkeeping for
COPIES = ("_to_copy", "copy_")  # the operations that may be given tensors of two devices


class Far(torch.Tensor):
    """A tensor of the stand-in: it says that it is elsewhere, and is a tensor of the CPU inside."""

    @staticmethod
    def __new__(cls, near: torch.Tensor) -> Far:
        return torch.Tensor._make_wrapper_subclass(
            cls, near.size(), strides=near.stride(), dtype=near.dtype, device=ELSEWHERE, requires_grad=False
        )

    def __init__(self, near: torch.Tensor) -> None:
        self.near = near

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return StandIn.compute(func, args, kwargs or {})


class StandIn(TorchDispatchMode):
    """A device beside the CPU, where there is no GPU: it computes as the CPU does and refuses tensors of both.

    torch's fake tensors say "cuda" as well, but hold no numbers for what depends on them, let a tensor of the CPU be
    read by places on the GPU, and end the process at the first gradient where torch is built without CUDA.
    """

    steps = 0  # operations done elsewhere

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.compute(func, args, kwargs or {})

    @classmethod
    def compute(cls, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        asked = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else ""
        if asked != ELSEWHERE and not any(isinstance(one, Far) for one in given):
            return func(*args, **kwargs)
        if func.overloadpacket.__name__ in COPIES:  # of one device into the other, or to where it is asked for
            there = asked == ELSEWHERE if asked else isinstance(given[0], Far)
        else:
            sized = {isinstance(one, Far) for one in given if one.ndim}
            assert len(sized) < 2, f"{func} is given tensors of two devices"
            there = asked in ("", ELSEWHERE)
        cls.steps += there
        near_args, near_kwargs = tree_map_only(Far, lambda one: one.near, (args, kwargs))
        made = func(*near_args, **{**near_kwargs, **({"device": "cpu"} if asked else {})})
        made = tree_map_only(torch.Tensor, Far, made) if there else made
        return return_and_correct_aliasing(func, args, kwargs, made)


def with_all_parts():
    fine = tuple(f"{kind} {'short' if n % 3 else 'long'}" for n, kind in enumerate(trades().labels["task_type"]))
    labelled = replace(trades(), labels={"task_type": trades().labels["task_type"], "capability": fine})
    config = replace(CONFIG, label_epochs=2, outcome_epochs=2, folds=2, class_weighting=0.5, price_weighting=0.5)
    return [labelled], config


@pytest.mark.parametrize(("attention", "off"), [(False, 0.0), (True, 1e-6)])
def test_training_elsewhere_leaves_no_tensor_behind_and_comes_to_the_same(monkeypatch, attention, off):
    """Labels, folds and outcomes with every part that a network can have: the same weights, bit for bit.

    Attention alone is summed in another order where torch does not take its kernel for CPUs.
    """
    sets, config = with_all_parts()
    shape = {**SHAPE, "batch_norm": True, "attention": attention}
    here = training.train(sets, config, shape).network.state_dict()
    monkeypatch.setattr(devices, "chosen", lambda device: ELSEWHERE)
    monkeypatch.setitem(cards.REMADE, ELSEWHERE, "")
    monkeypatch.setattr(StandIn, "steps", 0)
    with StandIn():
        trained = training.train(sets, config, shape)
    assert StandIn.steps > 10_000
    assert cards.described(trained)["training"]["device"] == ELSEWHERE
    there = trained.network.state_dict()
    assert {values.device.type for values in there.values()} == {"cpu"}
    assert [name for name in here if not torch.allclose(here[name], there[name], rtol=0.0, atol=off)] == []


@pytest.mark.parametrize("left", ["grams", "traits"])
def test_the_stand_in_finds_a_tensor_that_is_left_behind(left):
    network = RoutingNetwork(trained().network.config)
    inputs = dict(zip(("grams", "offsets", "traits"), tensors(featurise(trades().tasks.take(slice(4)))), strict=True))
    with StandIn():
        learner = devices.learner_of(network, ELSEWHERE)
        far = {name: values if name == left else values.to(ELSEWHERE) for name, values in inputs.items()}
        with pytest.raises(AssertionError, match="two devices"):
            learner.labels(**far)
        assert learner.labels(**{**far, left: inputs[left].to(ELSEWHERE)})["task_type"].device.type == ELSEWHERE


def test_auto_is_the_cpu_where_there_is_no_gpu_and_a_gpu_where_there_is_one(monkeypatch):
    for there, found in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert devices.chosen("auto") == found
        assert devices.chosen("cpu") == "cpu"


@pytest.mark.parametrize(("device", "words"), [("gpu", "--device: must be one of auto, cpu, cuda, got 'gpu'"),
                                               ("cuda", "--device: is cuda, but torch")])  # fmt: skip
def test_a_device_that_is_not_there_is_refused_by_the_name_of_its_field(monkeypatch, device, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError) as refused:
        devices.chosen(device, "--device")
    assert str(refused.value).startswith(words)
    with pytest.raises(ConfigError, match="device"):
        training.train([trades()], replace(CONFIG, device=device))


def test_the_trainers_device_is_checked_where_it_is_configured():
    with pytest.raises(ConfigError, match=r"retrain\.device: must be one of auto, cpu, cuda, got 'tpu'"):
        RetrainConfig(device="tpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this torch knows no GPU")
def test_a_gpu_learns_what_the_cpu_learns():
    """Other random draws and another order of sums: the same accuracy of labels, a log loss within 0.03."""
    there, here = training.train([trades()], replace(CONFIG, device="auto"), SHAPE), trained()
    assert there.config.device == "cuda"
    assert {values.device.type for values in there.network.state_dict().values()} == {"cpu"}
    val = {step.phase: step.val for step in there.progress}, {step.phase: step.val for step in here.progress}
    assert val[0]["labels"]["task_type"] == pytest.approx(val[1]["labels"]["task_type"], abs=0.02)
    assert val[0]["outcomes"]["trades"] == pytest.approx(val[1]["outcomes"]["trades"], abs=0.03)
