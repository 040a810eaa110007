"""Ray's serializers for pydantic, starlette and pyarrow, registered when those are imported and not before.

Ray imports all three at a worker's first message, only to tell its pickler about a few of their classes: a third of a
second and 18 MB in every worker, mostly for nothing, since a process without such a module has no such object.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

Register = Callable[[Any], None]


def _pydantic(context: Any) -> None:
    from ray._common.pydantic_compat import register_pydantic_serializers

    register_pydantic_serializers(context)


def _starlette(context: Any) -> None:
    from ray.util.serialization_addons import register_starlette_serializer

    register_starlette_serializer(context)


def _arrow(context: Any) -> None:
    from ray._private.arrow_serialization import _register_custom_datasets_serializers

    _register_custom_datasets_serializers(context)


SERIALIZERS: dict[str, Register] = {"pydantic": _pydantic, "starlette.datastructures": _starlette, "pyarrow": _arrow}


class _Loader(importlib.abc.Loader):
    """The module's own loader, and then a call."""

    def __init__(self, own: importlib.abc.Loader, then: Callable[[], None]) -> None:
        self._own = own
        self._then = then

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # From here on the module is as it would be without us: others look at its loader (for its resources, say).
        module.__loader__ = self._own
        if module.__spec__ is not None:
            module.__spec__.loader = self._own
        self._own.exec_module(module)
        self._then()


class Deferred(importlib.abc.MetaPathFinder):
    """Takes the place of `ray.util.serialization_addons.apply`, and sits first on `sys.meta_path`."""

    def __init__(self, serializers: dict[str, Register]) -> None:
        self._serializers = serializers
        self._contexts: list[Any] = []  # one for each job that a process works for: one, for a worker
        self._there = {name for name in serializers if name in sys.modules}

    def apply(self, context: Any) -> None:
        """Register what can already be of use with a serialization context, and the rest in time."""
        self._contexts.append(context)
        for name, register in self._serializers.items():
            if name in self._there:  # completely: not while it is being imported
                register(context)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec that the other finders have, with a loader that tells us when the module is there."""
        if fullname not in self._serializers:
            return None
        for finder in sys.meta_path:
            if finder is self:
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, lambda: self._imported(fullname))
                return spec
        return None

    def _imported(self, name: str) -> None:
        package, _, last = name.rpartition(".")
        if package:  # it gets its module as an attribute only when the import is over, and we are called before that
            setattr(sys.modules[package], last, sys.modules[name])
        self._there.add(name)
        for context in self._contexts:
            self._serializers[name](context)


def install() -> None:
    """Put this in the place of Ray's own, for this process and what is forked from it."""
    from ray.util import serialization_addons

    if any(isinstance(finder, Deferred) for finder in sys.meta_path):
        return
    deferred = Deferred(SERIALIZERS)
    serialization_addons.apply = deferred.apply
    sys.meta_path.insert(0, deferred)
