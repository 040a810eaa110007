"""Configuration as people write it, right and wrong; the schema that helps them; the files that come with flowray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import yaml

from flowray import schema
from flowray.config import Config, load
from flowray.errors import ConfigError

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "clusters").glob("*.yaml"))
SCHEMA = schema.schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def loaded(tmp_path: Path, text: str, **how: Any) -> Config:
    (tmp_path / "c.yaml").write_text(text)
    return load(tmp_path / "c.yaml", **how)


def refused(tmp_path: Path, text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, text)
    return caught.value


# ── load ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_is_a_configuration() -> None:
    assert load() == Config()


def test_an_empty_file_is_too(tmp_path: Path) -> None:
    assert loaded(tmp_path, "") == Config()


def test_overrides_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    text = "tiers: {secondary: {agents: 2, cpu_share: 0.3}}\nseed: 1\nname: file"
    environment = {"FLOWRAY_TIERS__SECONDARY__AGENTS": "3", "FLOWRAY_SEED": "2", "FLOWRAY_UNRELATED": "x"}
    config = loaded(tmp_path, text, environment=environment, overrides={"tiers.secondary.agents": 4})
    assert (config.name, config.seed, config.tiers["secondary"].agents) == ("file", 2, 4)
    assert config.tiers["secondary"].cpu_share == 0.3


def test_tiers_that_are_not_named_keep_their_defaults(tmp_path: Path) -> None:
    config = loaded(tmp_path, "tiers: {primary: {agents: 1}, extra: {cpu_share: 0.0}}")
    assert list(config.tiers) == ["orchestrator", "primary", "secondary", "specialist", "extra"]
    assert (config.tiers["primary"].agents, config.tiers["primary"].cpu_share) == (1, 0.3)


@pytest.mark.parametrize(
    ("text", "field", "problem", "hint"),
    [
        ("tirs: {}", "tirs", "no such setting", "did you mean 'tiers'?"),
        ("ray: {addres: x}", "ray.addres", "no such setting", "did you mean 'address'?"),
        ("agents: [{use: 'a:B', cuont: 2}]", "agents[0].cuont", "no such setting", "did you mean 'count'?"),
        ("agents: [{use: 'a:B'}, {use: nocolon}]", "agents[1].use", "wants 'module:Class'", ""),
        ("agents: [{count: 2}]", "agents[0]", "Missing required argument 'use'", ""),
        ("agents: [{use: 'a:B', tier: secundary}]", "agents[0].tier", "unknown tier", "did you mean 'secondary'?"),
        ("agents: {}", "agents", "Expected `array`, got `object`", ""),
        ("tiers: {primary: {agents: 0}}", "tiers.primary.agents", "must be at least 1", ""),
        ("tiers: {primary: {cpu_share: 2}}", "tiers.primary.cpu_share", "between 0 and 1", ""),
        ("tiers: {primary: {cpu_share: 0.9}}", "tiers", "add up to 1.60", ""),
        ("ray: {num_cpus: many}", "ray.num_cpus", "Expected `int | null`, got `str`", ""),
        ("ray: 3", "ray", "wants a mapping", ""),
        ("core: {retry: {backoff_s: -1}}", "core.retry.backoff_s", "must be positive", ""),
        ("store: {queue_bytes: 0}", "store.queue_bytes", "at least 1", ""),
        ("job: {open_tasks: 0}", "job.open_tasks", "must be at least 1", ""),
        ("job: {max_attempts: 0}", "job.max_attempts", "must be at least 1", ""),
        ("name: 'a b'", "name", "wants letters", ""),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, text: str, field: str, problem: str, hint: str) -> None:
    error = refused(tmp_path, text)
    assert error.field == field
    assert problem in error.problem
    assert error.hint.startswith(hint)


@pytest.mark.parametrize(
    ("text", "problem"), [("a: [", "is not YAML"), ("- 1", "wants a mapping"), ("1: 2", "wants a")]
)
def test_a_file_that_is_no_mapping(tmp_path: Path, text: str, problem: str) -> None:
    assert problem in refused(tmp_path, text).problem


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path)


def test_an_environment_variable_that_is_no_value() -> None:
    with pytest.raises(ConfigError, match="FLOWRAY_SEED"):
        load(None, {"FLOWRAY_SEED": "["})


# ── schema ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def objects(node: Any, path: str = "$") -> list[tuple[str, dict[str, Any]]]:
    """Every schema of a structure, with its place."""
    found = [(path, node)] if isinstance(node, dict) and "properties" in node else []
    below = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else []
    return found + [one for key, value in below for one in objects(value, f"{path}.{key}")]


def test_the_committed_schema_is_the_one_of_the_code() -> None:
    committed = (ROOT / "clusters" / "flowray.schema.json").read_text()
    assert committed == schema.text(), "run `flowray config schema > clusters/flowray.schema.json`"


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_every_setting_is_described_and_no_other_is_allowed() -> None:
    found = objects(SCHEMA)
    assert len(found) >= 12
    for place, structure in found:
        assert structure["additionalProperties"] is False, place
        assert structure["description"], place
        for name, setting in structure["properties"].items():
            assert setting.get("description"), f"{place}.{name} has no comment in the source"


def test_every_setting_is_in_the_schema_with_its_default() -> None:
    properties = SCHEMA["properties"]
    assert list(properties) == list(Config.__struct_fields__)
    assert properties["core"]["default"] == msgspec.to_builtins(Config().core)
    assert "default" not in SCHEMA["$defs"]["AgentConfig"]["properties"]["use"]
    assert SCHEMA["$defs"]["AgentConfig"]["required"] == ["use"]


def test_descriptions_come_from_the_comments() -> None:
    settings = SCHEMA["$defs"]["StoreConfig"]["properties"]
    assert settings["trim_rows"]["description"].startswith("outcomes looked at in one transaction")
    assert SCHEMA["properties"]["tiers"]["description"].startswith("those named here are changed")


def test_comments_inside_defaults_and_methods_describe_nothing() -> None:
    class Example:
        """An example."""

        first: dict[str, int] = {
            "a": 1,  # of the default
        }
        second: int = 2  # the second
        third: int = 3

        def method(self) -> None:
            fourth: int = 4  # local
            del fourth

    assert schema.comments_of(Example) == {"second": "the second"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"tirs": {}},
        {"agents": [{}]},
        {"agents": [{"use": "a:B", "cuont": 1}]},
        {"ray": {"num_cpus": "many"}},
        {"tiers": {"primary": {"agents": 1.5}}},
        {"job": {"needs": "one"}},
        {"core": {"retry": {"x": 1}}},
    ],
)
def test_the_schema_refuses_what_load_refuses(wrong: dict[str, Any]) -> None:
    assert not VALIDATOR.is_valid(wrong)
    with pytest.raises(ConfigError):
        load(None, {}, wrong)


@pytest.mark.parametrize(
    "right",
    [
        {},
        {"job": None},
        {"ray": {"num_cpus": None}},
        {"core": {"retry": {"backoff_s": 1}}},
        {"tiers": {"mine": {"labels": {"zone": "in(a,b)"}, "cpu_share": 0}}},
        {"agents": [{"use": "a:B", "options": {"x": [1], "y": None}}]},
    ],
)
def test_the_schema_takes_what_load_takes(right: dict[str, Any]) -> None:
    if right.get("agents"):
        right["agents"][0]["options"]["x"] = ["text"]
    VALIDATOR.validate(right)
    load(None, {}, right)


# ── the files that come with flowray ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_files_fit_the_schema_and_can_be_loaded(file: Path) -> None:
    text = file.read_text()
    assert text.startswith("# yaml-language-server: $schema=./flowray.schema.json\n")
    VALIDATOR.validate(yaml.safe_load(text))
    assert load(file).agents


def test_the_files_are_there() -> None:
    assert {file.name for file in FILES} >= {"audit.yaml", "local.yaml"}


def test_the_audit_file_is_the_audit_team() -> None:
    from flowray.skills.audit.team import TEAM

    config = load(ROOT / "clusters" / "audit.yaml")
    assert [(a.use, a.name, a.tier, a.count) for a in config.agents] == [
        (m.path, m.name, m.tier, m.count) for m in TEAM
    ]
    by_tier = {tier: sum(a.count for a in config.agents if a.tier == tier) for tier in config.tiers}
    assert by_tier == {"orchestrator": 1, "primary": 3, "secondary": 16, "specialist": 4}


def test_what_the_local_file_says_is_default_is() -> None:
    """The commented lines of local.yaml are there to be uncommented: they must be valid, and the defaults."""
    lines = (ROOT / "clusters" / "local.yaml").read_text().splitlines()
    tiers = [line[2:] for line in lines if line.startswith(("# tiers:", "#   "))]
    block = yaml.safe_load("\n".join(tiers[: tiers.index(next(line for line in tiers if "num_cpus" in line))]))
    assert load(None, {}, {"tiers": block["tiers"]}).tiers == Config().tiers
