"""The commands, each run as a process."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from service.inference.models import MANIFEST, check
from tests.service.conftest import EMBEDDING, Postgres
from tests.service.processes import ROOT, WITHOUT_TORCH, command

if TYPE_CHECKING:
    from pathlib import Path


def test_routes_prints_all_routes_without_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, "routes"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    routes = json.loads(done.stdout)
    assert routes["declared"] == routes["registered"]
    assert ["GET", "/health"] in routes["declared"]


def test_the_application_imports_nothing_slow() -> None:
    """Slow imports delay the start. A measured time would depend on the machine."""
    heavy = ("torch", "transformers", "alembic", "numpy")
    code = f"import sys, service.app; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_models_add_needs_the_standard_library_only(tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    origin.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (origin / name).write_text("{}", encoding="utf-8")
    arguments = ["models", "add", "m", "--from", str(origin), "--into", str(tmp_path / "models")]
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); "
        f"from service.__main__ import main; sys.exit(main({arguments!r}))"
    )
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True, capture_output=True)
    assert (tmp_path / "models" / "m" / MANIFEST).is_file()


def test_an_invalid_setting_exits_with_2_and_names_it() -> None:
    assert "TRUTHGRAPH_PORT" in command("serve", PORT="x", code=2)
    assert "TRUTHGRAPH_DATABASE_URL" in command("keys", "list", code=2)


def test_embed_prints_the_vectors_of_the_configured_model(models_directory: Path) -> None:
    output = command("embed", "The sun rises in the east.", "x", MODELS_DIR=models_directory)
    vectors = json.loads(output.splitlines()[0])
    from service.inference.torch_models import load_embedder, place

    model = load_embedder(check(models_directory, EMBEDDING), place("cpu", "float32"))
    expected = model.forward(model.prepare(["The sun rises in the east.", "x"], truncate=False))
    for vector, ours in zip(vectors, expected, strict=True):
        assert vector == pytest.approx(ours.values(), abs=1e-5)


def test_keys_are_added_listed_and_revoked(postgres: Postgres) -> None:
    url = postgres.fresh()
    key = command("keys", "add", "ci", "--scope", "read", "--tenant", "acme", DATABASE_URL=url).strip()
    assert key.startswith("tg_")
    listed = command("keys", "list", DATABASE_URL=url)
    assert json.loads(listed)["scopes"] == ["read"]
    assert key not in listed
    assert "there is already an API key named ci" in command("keys", "add", "ci", DATABASE_URL=url, code=1)
    command("keys", "revoke", "ci", DATABASE_URL=url)
    assert json.loads(command("keys", "list", DATABASE_URL=url))["revoked_at"] is not None
    assert "there is no API key named nobody" in command("keys", "revoke", "nobody", DATABASE_URL=url, code=1)


def test_migrate_creates_the_schema(postgres: Postgres) -> None:
    url = postgres.empty()
    command("migrate", DATABASE_URL=url)
    assert command("keys", "list", DATABASE_URL=url) == ""


def test_ingest_reports_invalid_lines_and_resumes(models_directory: Path, postgres: Postgres, tmp_path: Path) -> None:
    file = tmp_path / "evidence.jsonl"
    lines = [json.dumps({"content": f"sentence number {number}"}) for number in range(7)]
    lines[3], lines[5] = "{broken", lines[4]
    file.write_text("\n".join(lines), encoding="utf-8")
    progress = file.with_name(file.name + ".progress")
    progress.write_text("1", encoding="ascii")  # an earlier run stored the first line
    url = postgres.fresh()
    output = command("ingest", str(file), code=1, MODELS_DIR=models_directory, DATABASE_URL=url)
    assert "4 added, 1 duplicates, 1 failed" in output
    assert "line 4:" in output
    assert not progress.exists()
    contents = Postgres.execute(url, "SELECT content FROM evidence")
    assert sorted(row["content"] for row in contents) == [f"sentence number {number}" for number in (1, 2, 4, 6)]
