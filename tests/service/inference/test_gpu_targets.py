"""GPU targets of a slimmed installation, read from its records."""

import json
from pathlib import Path

import pytest

from service.inference.gpu_targets import applied_rules, has_code_for, kept_targets, refusal


def record(folder: Path, name: str, targets: list[str] | None) -> None:
    (folder / f"{name}.json").write_text(json.dumps({"schema_version": 1, "targets": targets}))


def test_without_records_all_targets_are_kept(tmp_path: Path) -> None:
    assert kept_targets(tmp_path / "none") is None


def test_a_record_without_pruning_keeps_all_targets(tmp_path: Path) -> None:
    record(tmp_path, "web", None)

    assert kept_targets(tmp_path) is None


def test_targets_in_every_record_are_kept(tmp_path: Path) -> None:
    record(tmp_path, "torch", ["8.0", "9.0"])
    record(tmp_path, "cuda-math", ["9.0", "12.0"])
    record(tmp_path, "web", None)

    assert kept_targets(tmp_path) == ((9, 0),)


@pytest.mark.parametrize(
    ("capability", "served"), [((8, 0), True), ((8, 9), True), ((9, 0), False), ((7, 5), False), ((12, 0), False)]
)
def test_code_runs_on_later_minor_versions_of_its_major(capability: tuple[int, int], *, served: bool) -> None:
    assert has_code_for(capability, ((8, 0),)) is served


def test_an_installation_with_all_targets_refuses_no_gpu() -> None:
    assert refusal((7, 5), None) is None


def test_the_refusal_names_both_capabilities_and_the_fix() -> None:
    reason = refusal((8, 0), ((9, 0), (12, 0)))

    assert reason is not None
    assert "9.0, 12.0" in reason
    assert "has 8.0" in reason
    assert "`api`" in reason
    assert "\n" not in reason


def test_applied_rules_are_those_of_all_records(tmp_path: Path) -> None:
    for name, rules in {"slim": ["cudnn-engines", "tests"], "more": ["tests"]}.items():
        removals = [{"rule": rule, "removed": {"x": 1}} for rule in rules]
        (tmp_path / f"{name}.json").write_text(json.dumps({"targets": None, "removals": removals}))

    assert applied_rules(tmp_path) == {"cudnn-engines", "tests"}
    assert applied_rules(tmp_path / "none") == frozenset()
