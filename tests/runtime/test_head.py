"""What a head is told of its store, and where a head that is gone comes back to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from flowray.config import Config, RayConfig
from flowray.errors import ConfigError, FlowrayError
from flowray.runtime import service
from flowray.runtime.cluster import system_config
from flowray.runtime.head import Head, command, head_of, params_of, store_environment


def head(**settings: Any) -> Head:
    config = Config(name="x", ray=RayConfig(**settings))
    return head_of(config, address="10.0.0.1:5000", dashboard="", home="h", store_path="/s")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of our own, with a place for the runtime x."""
    monkeypatch.setenv("HOME", str(tmp_path))
    service.directory_of("x").mkdir(parents=True)
    return tmp_path


def test_the_embedded_store_is_rays_rocksdb_in_its_directory() -> None:
    assert store_environment(head()) == {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": "/s"}
    assert params_of(head()).external_addresses is None
    assert store_environment(head(store="memory")) == {}


def test_a_redis_is_told_with_its_password_from_the_environment_and_a_space_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TABLES", "rediss://flow:s%40fe@db:6390")
    told = head(store="env:TABLES")
    params = params_of(told)
    assert params.external_addresses == ["rediss://db:6390"] * 2
    assert (params.redis_username, params.redis_password) == ("flow", "s@fe")
    assert store_environment(told) == {"RAY_external_storage_namespace": "flowray-x"}
    assert "s@fe" not in " ".join(command(told)), "command lines are for everyone to see"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"store": "rocksdb"}, r"ray\.store|store"),
        ({"store": "redis://:secret@db:1"}, "password"),
        ({"store": "unix:///tmp/redis"}, "TCP"),
        ({"store": "memory", "store_path": "/s", "reconnect_s": 1.0}, "reconnect_s"),
        ({"store": "redis://db:1", "store_path": "/s"}, "store_path"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named) as refused:
        RayConfig(**settings)
    assert "secret" not in str(refused.value)


def test_all_of_the_cluster_waits_for_its_control_store_as_long_as_the_configuration_says() -> None:
    settings = system_config(Config(ray=RayConfig(reconnect_s=90.0)))
    assert settings["gcs_rpc_server_reconnect_timeout_s"] == 90
    assert settings["health_check_period_ms"] == 300
    slow = system_config(Config(ray=RayConfig(fast_failure_detection=False)))
    assert slow == {"gcs_rpc_server_reconnect_timeout_s": 120}
    assert msgspec.json.decode(command(head())[-1], type=Head) == head()


def test_a_head_comes_back_to_the_same_place_until_it_was_taken_down(home: Path) -> None:
    config = Config(name="x")
    first = service._kept(config, host="127.0.0.1", dashboard=True)
    assert service._kept(config, host="127.0.0.1", dashboard=True) == first
    assert Path(first.store_path) == home / ".flowray" / "x" / "gcs-x"
    (Path(first.store_path)).mkdir()
    service.forget_store("x")
    assert not Path(first.store_path).exists()
    assert service._kept(config, host="127.0.0.1", dashboard=True).home != first.home


def test_a_head_that_moves_or_changes_its_store_begins_anew(home: Path) -> None:
    first = service._kept(Config(name="x"), host="127.0.0.1", dashboard=True)
    Path(first.store_path).mkdir()
    moved = service._kept(Config(name="x"), host="127.0.0.2", dashboard=True)
    assert moved.address.startswith("127.0.0.2:") and moved.home != first.home
    assert not Path(first.store_path).exists(), "its tables name the old address"
    memory = Config(name="x", ray=RayConfig(store="memory"))
    kept = service._kept(memory, host="127.0.0.2", dashboard=True)
    assert kept.store_path == ""
    assert service._kept(memory, host="127.0.0.2", dashboard=True).home != kept.home, "there is nothing to come back to"


def test_only_what_is_ours_in_a_directory_that_was_named_is_removed(home: Path) -> None:
    (home / "big").mkdir()
    (home / "big" / "other").touch()
    config = Config(name="x", ray=RayConfig(store_path=str(home / "big")))
    kept = service._kept(config, host="127.0.0.1", dashboard=False)
    Path(kept.store_path).mkdir()
    service.forget_store("x")
    assert [path.name for path in (home / "big").iterdir()] == ["other"]


def test_a_damaged_note_is_told(home: Path) -> None:
    (home / ".flowray" / "x" / "head.json").write_text("{")
    with pytest.raises(FlowrayError, match="remove it"):
        service._kept(Config(name="x"), host="127.0.0.1", dashboard=True)
