from __future__ import annotations

import io
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from msgspec import structs
from rich.console import Console

from buildkit import spec
from buildkit.errors import CommandFailed
from buildkit.staging.stack.sidecars import SIDECARS, ensure_sidecar
from tests.support.fake_engine import FakeEngine
from tests.support.release_records import write_records

if TYPE_CHECKING:
    from buildkit.spec import ImageSpec, Target

ROOT = Path(__file__).parents[4]
DIGEST = f"sha256:{'a' * 64}"


@pytest.fixture
def loaded(tmp_path: Path) -> ImageSpec:
    """The project's spec over a copy of docker/."""
    shutil.copytree(ROOT / "docker", tmp_path / "docker")
    return structs.replace(spec.load(ROOT), project=tmp_path)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The targets that were built so far, by a builder that writes a record only."""
    targets: list[str] = []

    def build(_spec: ImageSpec, target: Target, **_options: object) -> SimpleNamespace:
        targets.append(target.name)
        path, _verify_path = write_records(tmp_path, built=DIGEST)
        path.rename(tmp_path / f"image-{target.name}.json")
        return SimpleNamespace(digest=DIGEST)

    monkeypatch.setattr("buildkit.build.build.build", build)
    monkeypatch.setattr("buildkit.build.base.ensure_base_image", lambda *_, **__: None)
    return targets


def ensure(loaded: ImageSpec, engine: FakeEngine, service: str = "proxy") -> str:
    return ensure_sidecar(
        loaded,
        service,
        engine=engine,
        folder=loaded.project,
        environment={},
        console=Console(file=io.StringIO()),
        log=lambda _: None,
    )


def test_each_sidecar_is_a_target() -> None:
    assert {spec.load(ROOT).target(target).name for target in SIDECARS.values()} == {"postgres", "proxy"}


def test_sidecar_is_built_once(loaded: ImageSpec, built: list[str]) -> None:
    engine = FakeEngine()

    assert [ensure(loaded, engine, "database"), ensure(loaded, engine, "database")] == [DIGEST, DIGEST]
    assert built == ["postgres"]


def test_sidecar_is_built_again_if_a_source_changed(loaded: ImageSpec, built: list[str]) -> None:
    ensure(loaded, FakeEngine())
    (loaded.project / "docker" / "proxy" / "added").write_text("text")
    ensure(loaded, FakeEngine())

    assert built == ["proxy", "proxy"]


def test_sidecar_is_built_again_if_the_engine_lost_it(loaded: ImageSpec, built: list[str]) -> None:
    ensure(loaded, FakeEngine())
    ensure(loaded, FakeEngine(answers={"image inspect": CommandFailed(["docker"], 1, "no such image")}))

    assert built == ["proxy", "proxy"]
