from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from msgspec import structs

from buildkit.staging.release import records
from buildkit.staging.release.records import Releases, new_release
from buildkit.staging.retention import Removed, prune_images
from buildkit.staging.stack.registry import LocalRegistry
from buildkit.staging.stack.stack import Stack
from tests.support.fake_engine import FakeEngine
from tests.support.http_server import Reply, Request, serve
from tests.support.swarm_tasks import show_tasks, task

if TYPE_CHECKING:
    from collections.abc import Callable

    from buildkit.staging.release.records import Release, ReleaseOutcome

SIZES = ['{"Type": "Images", "Size": "5GB"}', '{"Type": "Containers", "Size": "0B"}\n{"Type": "Images", "Size": "3GB"}']


def release(name: str, outcome: ReleaseOutcome, registry: str) -> Release:
    digest = f"sha256:{name}"
    return structs.replace(new_release(), name=name, digest=digest, image=f"{registry}/api@{digest}", outcome=outcome)


@pytest.fixture
def engine() -> FakeEngine:
    """An engine with the images of three releases, of which `running` runs, and of others."""
    images = ["old", "new", "running"]
    listed = [f"r.test/api:{name} sha256:id-{name} sha256:{name}" for name in images]
    engine = FakeEngine(
        answers={
            "info": '{"LocalNodeState": "active", "ControlAvailable": true}',
            "service ls --quiet --filter name=s_api": "id",
            "image ls": "\n".join([*listed, "other/api:old sha256:id-old sha256:old"]),
            "system df": list(SIZES),
        }
    )
    show_tasks(engine, [task("a", "running", image="r.test/api@sha256:running")])
    return engine


def prune(engine: FakeEngine, folder: Path, *, keep: int = 1, local: LocalRegistry | None = None) -> Removed:
    stack = Stack(engine=engine, name="s", file=Path("stack.yaml"))
    return prune_images(engine, stack, folder, keep=keep, local=local, log=lambda _: None)


def save(folder: Path, *releases: Release) -> None:
    records.save(folder, Releases(releases=releases))


def test_prune_removes_old_images_of_the_repository_only(engine: FakeEngine, tmp_path: Path) -> None:
    save(
        tmp_path,
        *(release(name, "rolled back", "r.test") for name in ("running", "old")),
        release("new", "serving", "r.test"),
    )

    removed = prune(engine, tmp_path)

    assert engine.called("image rm") == ["image rm --force r.test/api:old"]
    assert removed == Removed(("r.test/api@sha256:old",), engine_bytes=2_000_000_000, registry_bytes=0)


def test_prune_without_old_releases_removes_nothing(engine: FakeEngine, tmp_path: Path) -> None:
    save(tmp_path, release("new", "serving", "r.test"))

    assert prune(engine, tmp_path) == Removed((), 0, 0)


@pytest.mark.parametrize("status", [202, 405])
def test_prune_deletes_from_the_local_registry(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """A registry that refuses keeps the image; the release is still complete."""
    deleted: list[str] = []

    def respond(request: Request) -> Reply:
        deleted.append(f"{request.method} {request.path}")
        return Reply(status)

    def collect(_registry: LocalRegistry, log: Callable[[str], None]) -> int:
        del log
        return 7

    monkeypatch.setattr(LocalRegistry, "collect_garbage", collect)
    with serve(respond) as url:
        local = LocalRegistry(tmp_path, int(url.rpartition(":")[2]))
        save(tmp_path, release("gone", "failed", local.address), release("new", "serving", local.address))
        removed = prune(engine, tmp_path, local=local)

    assert deleted == ["DELETE /v2/api/manifests/sha256:gone"]
    assert removed.registry_bytes == (7 if status == 202 else 0)


def test_image_sizes_may_be_missing(engine: FakeEngine, tmp_path: Path) -> None:
    engine.answers["system df"] = json.dumps({"Type": "Containers", "Size": "0B"})
    save(tmp_path, release("old", "failed", "r.test"), release("new", "serving", "r.test"))

    assert prune(engine, tmp_path).engine_bytes == 0
