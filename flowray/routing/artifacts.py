"""A router on disk: `weights.npz` and `card.json`, read without pickle and refused unless whole and of this version.

`weights.npz` holds one array per weight (numpy's own format, `allow_pickle=False`) and, as the array `header`, JSON in
UTF-8: format, feature version, the network's shape, how it was trained, on what (digests), with what result.
`card.json` repeats the header for people and tools, with licences, limits and the file's SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flowray.errors import FlowrayError
from flowray.routing.features import FEATURES_VERSION

FORMAT = "flowray-router-1"
WEIGHTS, CARD = "weights.npz", "card.json"
MAX_BYTES = 512 * 1024 * 1024  # of the weights when unpacked; a small file may unpack to a large one
_HEADER = "header"


class ArtifactError(FlowrayError):
    """A router on disk that cannot be used. `path` is where it is, `hint` a way out."""

    def __init__(self, path: str, problem: str, hint: str = "make it again with `make router`") -> None:
        super().__init__(path, problem, hint)
        self.path, self.problem, self.hint = path, problem, hint

    def __str__(self) -> str:
        return f"{self.path}: {self.problem} ({self.hint})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """What was read."""

    header: Mapping[str, Any]
    arrays: Mapping[str, npt.NDArray[Any]]
    path: Path
    digest: str  # SHA-256 of the weights' file


def save(directory: Path | str, arrays: Mapping[str, npt.NDArray[Any]], header: Mapping[str, Any]) -> str:
    """Write weights and card; the card last, so that a torn write is never taken for a router. Gives the digest."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    whole = {"format": FORMAT, "features_version": FEATURES_VERSION, **header}
    encoded = np.frombuffer(json.dumps(whole, sort_keys=True).encode(), np.uint8)
    new = directory / f".{WEIGHTS}.new"
    with zipfile.ZipFile(new, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name, values in {_HEADER: encoded, **arrays}.items():
            # A fixed date: the same weights are the same bytes.
            with archive.open(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(values), allow_pickle=False)
    new.replace(directory / WEIGHTS)
    digest = _digest(directory / WEIGHTS)
    described = directory / f".{CARD}.new"
    described.write_text(json.dumps({**whole, "sha256": digest}, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    described.replace(directory / CARD)
    return digest


def load(directory: Path | str) -> Artifact:
    """Read and check a router.

    Raises:
        ArtifactError: a file is missing, torn, changed after it was written, or of another version.
    """
    directory = Path(directory)
    path = directory / WEIGHTS
    described = card(directory)
    if not path.is_file():
        raise ArtifactError(str(path), "there is no such file")
    digest = _digest(path)
    if digest != described.get("sha256"):
        raise ArtifactError(str(path), "the file is not the one that its card describes: torn, or changed since")
    for key, mine in (("format", FORMAT), ("features_version", FEATURES_VERSION)):
        if described.get(key) != mine:
            raise ArtifactError(str(path), f"{key} is {described.get(key)!r}, this flowray reads {mine!r}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = _unpacked(archive, path)
        header = json.loads(arrays.pop(_HEADER).astype(np.uint8).tobytes())
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise ArtifactError(str(path), f"cannot be read: {error}") from error
    for name, values in arrays.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ArtifactError(str(path), f"{name} holds a number that is not finite")
    return Artifact(header=header, arrays=arrays, path=path, digest=digest)


def card(directory: Path | str) -> dict[str, Any]:
    """What a router says of itself.

    Raises:
        ArtifactError: there is none, or it is not JSON.
    """
    path = Path(directory) / CARD
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(str(path), "there is no such file", "name a directory that holds a router") from error
    except (OSError, ValueError) as error:
        raise ArtifactError(str(path), f"cannot be read: {error}") from error
    if not isinstance(described, dict):
        raise ArtifactError(str(path), "is not a JSON object")
    return described


def _unpacked(archive: Any, path: Path) -> dict[str, npt.NDArray[Any]]:
    size = sum(entry.file_size for entry in archive.zip.infolist())
    if size > MAX_BYTES:
        raise ArtifactError(str(path), f"unpacks to {size:,} bytes, more than {MAX_BYTES:,}", "use a smaller network")
    arrays = {name: archive[name] for name in archive.files}
    for name, values in arrays.items():
        if not isinstance(values, np.ndarray):  # numpy hands over as bytes what does not begin like an array
            raise ArtifactError(str(path), f"cannot be read: {name} is no array")
    return arrays


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
