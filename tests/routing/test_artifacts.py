"""Routers on disk: whole or refused."""

from __future__ import annotations

import json
import pickle
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowray.routing import artifacts
from flowray.routing.artifacts import CARD, WEIGHTS, ArtifactError
from flowray.routing.features import FEATURES_VERSION

ARRAYS = {"weight": np.arange(600, dtype=np.float32).reshape(30, 20), "rows": np.arange(7)}


@pytest.fixture
def saved(tmp_path):
    artifacts.save(tmp_path, ARRAYS, {"seed": 3})
    return tmp_path


def test_what_is_written_is_read(saved):
    read = artifacts.load(saved)
    assert read.header["seed"] == 3
    assert read.header["features_version"] == FEATURES_VERSION
    assert {name: values.tolist() for name, values in read.arrays.items()} == {
        name: values.tolist() for name, values in ARRAYS.items()
    }
    assert artifacts.card(saved)["sha256"] == read.digest


def test_the_same_weights_are_the_same_bytes(tmp_path, saved):
    assert artifacts.save(tmp_path / "again", ARRAYS, {"seed": 3}) == artifacts.load(saved).digest


@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
def test_any_bit_changed_is_refused(saved, at, bit):
    whole = (saved / WEIGHTS).read_bytes()
    place = int(at * len(whole))
    try:
        (saved / WEIGHTS).write_bytes(whole[:place] + bytes([whole[place] ^ (1 << bit)]) + whole[place + 1 :])
        with pytest.raises(ArtifactError, match="torn, or changed"):
            artifacts.load(saved)
    finally:
        (saved / WEIGHTS).write_bytes(whole)


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.99])
def test_a_truncated_file_is_refused(saved, kept):
    whole = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(whole[: int(kept * len(whole)) if kept < 1 else kept])
    with pytest.raises(ArtifactError, match="torn, or changed"):
        artifacts.load(saved)


def forge(directory, name: str, content: bytes) -> None:
    """Put another weights' file there, with a card to match."""
    with zipfile.ZipFile(directory / WEIGHTS, "w") as archive:
        archive.writestr(name, content)
    described = artifacts.card(directory) | {"sha256": artifacts._digest(directory / WEIGHTS)}
    (directory / CARD).write_text(json.dumps(described))


def test_a_pickle_is_never_unpacked(saved, tmp_path):
    (tmp_path / "x").mkdir()
    with (tmp_path / "x" / "evil.npy").open("wb") as file:
        np.lib.format.write_array(file, np.array([{"a": pickle}.keys()], object).astype(str).astype(object))
    forge(saved, "header.npy", (tmp_path / "x" / "evil.npy").read_bytes())
    with pytest.raises(ArtifactError, match="cannot be read"):
        artifacts.load(saved)


@pytest.mark.parametrize(("name", "content"), [("header.npy", b"junk"), ("other.npy", b""), ("x.txt", b"hello")])
def test_junk_with_a_matching_card_is_refused(saved, name, content):
    forge(saved, name, content)
    with pytest.raises(ArtifactError, match="cannot be read"):
        artifacts.load(saved)


@pytest.mark.parametrize(("key", "value"), [("features_version", FEATURES_VERSION + 1), ("format", "other")])
def test_another_version_is_refused_and_both_are_named(saved, key, value):
    (saved / CARD).write_text(json.dumps(artifacts.card(saved) | {key: value}))
    with pytest.raises(ArtifactError, match=f"{key} is {value!r}, this flowray reads"):
        artifacts.load(saved)


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    artifacts.save(tmp_path, {"weight": np.array([1.0, np.nan], np.float32)}, {})
    with pytest.raises(ArtifactError, match="weight holds a number that is not finite"):
        artifacts.load(tmp_path)


def test_a_file_that_unpacks_to_too_much_is_refused(saved, monkeypatch):
    monkeypatch.setattr(artifacts, "MAX_BYTES", 1000)
    with pytest.raises(ArtifactError, match="unpacks to"):
        artifacts.load(saved)


def test_nothing_there_is_said_with_a_way_out(tmp_path):
    with pytest.raises(
        ArtifactError, match=r"card.json: there is no such file \(name a directory that holds a router\)"
    ):
        artifacts.load(tmp_path / "none")


@pytest.mark.parametrize("content", ["[]", "{", "\x00"])
def test_a_card_that_is_no_card_is_refused(saved, content):
    (saved / CARD).write_text(content)
    with pytest.raises(ArtifactError, match=r"card\.json"):
        artifacts.load(saved)


def test_the_error_survives_pickling():
    error = pickle.loads(pickle.dumps(ArtifactError("a", "b", "c")))
    assert (error.path, error.problem, error.hint, str(error)) == ("a", "b", "c", "a: b (c)")
