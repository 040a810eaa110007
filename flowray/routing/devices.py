"""Where training computes: on the CPU, or on a GPU where there is one.

Only what learns goes to the device: a copy of the network's weights, the batches and the optimiser's state. After each
epoch the weights come home, and val, calibration and saving read the network on the CPU as serving does. On the CPU the
network itself learns, so nothing is copied.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from flowray.core.retraining import DEVICES
from flowray.errors import ConfigError
from flowray.routing.network import RoutingNetwork


def chosen(device: str, field: str = "device") -> str:
    """`cpu` or `cuda`, for a name of `DEVICES`: `auto` is a GPU where torch finds one.

    Raises:
        ConfigError: there is no such device, here or anywhere; it names `field`.
    """
    if device not in DEVICES:
        raise ConfigError(field, f"must be one of {', '.join(DEVICES)}, got {device!r}")
    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        why = "finds no GPU" if torch.version.cuda else f"{torch.__version__} is built without CUDA"
        raise ConfigError(field, f"is cuda, but torch {why}", "use cpu, or auto to take a GPU where there is one")
    return "cuda" if there and device != "cpu" else "cpu"


def learner_of(router: RoutingNetwork, device: str) -> RoutingNetwork:
    """What learns in the router's stead: on the CPU the router itself, elsewhere a copy of it there."""
    return router if device == "cpu" else copy.deepcopy(router).to(device)


def bring_home(learner: RoutingNetwork, router: RoutingNetwork) -> None:
    """Give the router what its learner knows by now."""
    if learner is not router:
        router.load_state_dict(learner.state_dict())


def moved(tensors: Mapping[str, Tensor] | None, device: torch.device) -> dict[str, Tensor] | None:
    """The same tensors on a device."""
    return None if tensors is None else {name: values.to(device) for name, values in tensors.items()}
