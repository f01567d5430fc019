from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from buildkit import spec
from buildkit.build import locks
from buildkit.build.locks import Requirement
from buildkit.errors import UsageError
from buildkit.spec import LayerSpec

PROJECT = Path(__file__).resolve().parents[3]
HASH = "--hash=sha256:" + "0" * 64


def requirement(name: str) -> Requirement:
    return Requirement(name, "1.0", f"{name}==1.0 \\\n    {HASH}")


def closure(*names: str) -> dict[str, Requirement]:
    return {name: requirement(name) for name in names}


LAYERS = (
    LayerSpec(name="big", reason="-", distributions=("Torch",)),
    LayerSpec(name="models", reason="-", extra="ml"),
    LayerSpec(name="web", reason="-", extra=""),
    LayerSpec(name="dev", reason="-", extra="dev"),
)
CLOSURES = {
    "": closure("litestar", "idna"),
    "ml": closure("litestar", "idna", "torch", "tqdm"),
    "dev": closure("litestar", "idna", "torch", "tqdm", "pytest"),
}


def test_assign_puts_each_distribution_into_one_layer() -> None:
    placed = locks.assign(LAYERS, CLOSURES)

    assert {name: [item.name for item in items] for name, items in placed.items()} == {
        "big": ["torch"],
        "models": ["tqdm"],
        "web": ["idna", "litestar"],
        "dev": ["pytest"],
    }


def test_assign_puts_excluded_distribution_into_no_layer() -> None:
    placed = locks.assign(LAYERS, CLOSURES, ["tqdm"])

    assert "tqdm" not in {item.name for items in placed.values() for item in items}


def test_assign_refuses_name_in_two_layers() -> None:
    twice = (*LAYERS, LayerSpec(name="again", reason="-", distributions=("torch",)))

    with pytest.raises(UsageError, match="already in layer big"):
        locks.assign(twice, CLOSURES)


def test_assign_refuses_name_that_is_not_locked() -> None:
    unknown = (*LAYERS, LayerSpec(name="other", reason="-", distributions=("nvidia-nothing",)))

    with pytest.raises(UsageError, match="not in the lock"):
        locks.assign(unknown, CLOSURES)


def test_assign_refuses_distribution_without_layer() -> None:
    with pytest.raises(UsageError, match="in no layer"):
        locks.assign(LAYERS[:1], CLOSURES)


def test_parse_requirements_reads_names_versions_and_lines() -> None:
    lines = f"# comment\nFoo.Bar==1.0 ; python_version >= '3' \\\n    {HASH} \\\n    {HASH}\nb==2+cpu {HASH}\n"

    first, second = locks.parse_requirements(lines)

    assert (first.name, first.version, first.text.count(HASH)) == ("foo-bar", "1.0", 2)
    assert (second.name, second.version, second.text) == ("b", "2+cpu", f"b==2+cpu {HASH}")


@pytest.mark.parametrize(
    "text",
    [
        "torch>=2\n",
        "torch==2.13.0\n",
        f"torch>=2 {HASH}\n",
        f"torch==2.* {HASH}\n",
        f"-e . {HASH}\n",
        f"torch @ file:///x {HASH}\n",
    ],
)
def test_parse_requirements_refuses_line_without_pin_or_hash(text: str) -> None:
    with pytest.raises(UsageError, match="with at least one sha256 hash"):
        locks.parse_requirements(text)


def test_project_locks_are_current_and_hold_each_distribution_once() -> None:
    loaded = spec.load(PROJECT)
    locks.check_locks(loaded)

    names = [
        item.name
        for layer in loaded.layers
        for item in locks.parse_requirements((loaded.lock_folder / f"{layer.name}.txt").read_text())
    ]

    assert sorted(set(names)) == sorted(names)
    assert {"torch", "transformers", "litestar", "pytest", "nvidia-cudnn-cu13"} <= set(names)
    assert not set(loaded.excluded) & set(names)


def test_project_locks_name_no_address() -> None:
    for path in (PROJECT / "docker" / "lock").glob("*.txt"):
        assert not re.search(r"://|index-url|find-links", path.read_text()), path


def test_lock_is_stale_after_a_dependency_was_added(tmp_path: Path) -> None:
    shutil.copytree(PROJECT / "docker", tmp_path / "docker")
    metadata = (PROJECT / "pyproject.toml").read_text()
    (tmp_path / "pyproject.toml").write_text(metadata.replace('"asyncpg>=', '"aiohttp", "asyncpg>='))

    with pytest.raises(UsageError, match="run `nox -s lock`"):
        locks.check_locks(spec.load(tmp_path))


def test_missing_lock_file_is_named(tmp_path: Path) -> None:
    shutil.copytree(PROJECT / "docker", tmp_path / "docker")
    shutil.copy(PROJECT / "pyproject.toml", tmp_path)
    (tmp_path / "docker" / "lock" / "torch.txt").unlink()

    with pytest.raises(UsageError, match=r"torch\.txt = 'missing'"):
        locks.check_locks(spec.load(tmp_path))


@pytest.mark.parametrize("target", [target.name for target in spec.load(PROJECT).targets if target.layers])
def test_dockerfile_copies_each_layer_once(target: str) -> None:
    """The stages of docker/Dockerfile are written by hand and must agree with the layers of docker/images.toml."""
    loaded = spec.load(PROJECT)
    stages = re.split(r"^FROM ", (PROJECT / "docker" / "Dockerfile").read_text(), flags=re.MULTILINE)[1:]
    by_name = {stage.split("\n", 1)[0].partition(" AS ")[2]: stage for stage in stages}

    def copied(name: str) -> list[str]:
        stage = by_name[name]
        parent = stage.split()[0]
        above = copied(parent) if parent in by_name else []
        return above + re.findall(r"^COPY --link --from=(\S+) /layer/\S+ /$", stage, re.MULTILINE)

    lock_of = {
        name: match[1]
        for name, stage in by_name.items()
        if (
            match := re.search(
                r"^ARG LAYER=([\w-]+) .*source=docker/lock/\$\{LAYER\}\.txt.*layout\.py install .*\"\$LAYER\"$",
                stage,
                re.MULTILINE | re.DOTALL,
            )
        )
    }
    chosen = loaded.target(target)

    assert list(chosen.layers) == [lock_of[name] for name in copied(chosen.stage) if name in lock_of]
    # The slim manifest is joined from the layers that its stage mounts. Development tools are not slimmed.
    [joined] = {"slim", "core-slim"}.intersection(copied(chosen.stage))
    mounted = re.findall(r"target=/mnt/layers/([\w-]+)", by_name[joined])
    assert mounted == [name for name in copied(chosen.stage) if lock_of.get(name, "dev") != "dev"]
