from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, ClassVar

import pytest
import tokenizers
import transformers

from service.inference import torch_models
from service.inference.models import KNOWN, MANIFEST, ModelFolderError, add, check

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    folder = tmp_path / "origin"
    (folder / "1_Pooling").mkdir(parents=True)
    for name, content in {
        "config.json": "{}",
        "tokenizer.json": "{}",
        "model.safetensors": "weights",
        "pytorch_model.bin": "a pickle",
        "modeling_custom.py": "code",
        "README.md": "card",
        "1_Pooling/config.json": "{}",
        ".gitattributes": "x",
    }.items():
        (folder / name).write_text(content, encoding="utf-8")
    return folder


def test_an_added_model_passes_the_check(origin: Path, tmp_path: Path) -> None:
    added = add(tmp_path / "models", "m", str(origin))
    assert check(tmp_path / "models", "m") == added


def test_only_data_files_are_copied_no_pickles_or_code(origin: Path, tmp_path: Path) -> None:
    folder = add(tmp_path / "models", "m", str(origin)).path
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {
        "config.json",
        "tokenizer.json",
        "model.safetensors",
        "README.md",
        "1_Pooling/config.json",
        MANIFEST,
    }


def test_the_same_input_gives_the_same_bytes_and_times(origin: Path, tmp_path: Path) -> None:
    first = add(tmp_path / "one", "m", str(origin)).path
    os.utime(origin / "config.json", (1, 1))
    second = add(tmp_path / "two", "m", str(origin)).path
    for path in sorted(first.rglob("*")):
        twin = second / path.relative_to(first)
        assert path.stat().st_mtime == twin.stat().st_mtime
        assert path.stat().st_mode == twin.stat().st_mode
        assert path.is_dir() or path.read_bytes() == twin.read_bytes()


def test_a_changed_file_is_refused_with_its_name(origin: Path, tmp_path: Path) -> None:
    folder = add(tmp_path, "m", str(origin)).path
    (folder / "model.safetensors").write_text("weightz", encoding="utf-8")
    with pytest.raises(ModelFolderError, match=r"model\.safetensors"):
        check(tmp_path, "m")


def test_a_missing_and_an_unlisted_file_are_refused(origin: Path, tmp_path: Path) -> None:
    folder = add(tmp_path, "m", str(origin)).path
    (folder / "extra.json").write_text("{}", encoding="utf-8")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelFolderError, match=r"extra\.json, tokenizer\.json"):
        check(tmp_path, "m")


def test_an_unknown_manifest_version_is_refused(origin: Path, tmp_path: Path) -> None:
    manifest = add(tmp_path, "m", str(origin)).path / MANIFEST
    content = json.loads(manifest.read_text(encoding="utf-8"))
    manifest.write_text(json.dumps({**content, "schema_version": 2}), encoding="utf-8")
    with pytest.raises(ModelFolderError, match="version 2"):
        check(tmp_path, "m")


@pytest.mark.parametrize("name", ["../m", "", "a/b", ".."])
def test_a_name_cannot_leave_the_directory(name: str, origin: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError):
        add(tmp_path, name, str(origin))


@pytest.mark.parametrize("needed", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_source_without_a_needed_file_is_refused(needed: str, origin: Path, tmp_path: Path) -> None:
    (origin / needed).unlink()
    with pytest.raises(ModelFolderError):
        add(tmp_path, "m", str(origin))


def test_a_missing_model_says_how_to_add_it(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="python -m service models add m --from"):
        check(tmp_path, "m")


@pytest.fixture
def sentencepiece_origin(origin: Path) -> Path:
    """A model with a SentencePiece tokenizer, like DeBERTa-v3's on the hub."""
    sentencepiece = pytest.importorskip("sentencepiece")
    words = ["sun", "the", "in", "east", "Glaciers", "mass", "decade", "growing", "é"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(" ".join(words[start : start + 9]) for start in range(8) for _ in range(50)),
        model_prefix=str(origin / "spm"),
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        pad_piece="[PAD]",
        bos_piece="[CLS]",
        eos_piece="[SEP]",
        unk_piece="[UNK]",
        minloglevel=2,
    )
    (origin / "tokenizer.json").unlink()
    (origin / "spm.vocab").unlink()
    (origin / "config.json").write_text('{"model_type": "deberta-v2"}', encoding="utf-8")
    (origin / "tokenizer_config.json").write_text('{"do_lower_case": false}', encoding="utf-8")
    return origin


def test_a_sentencepiece_tokenizer_is_converted_and_listed(sentencepiece_origin: Path, tmp_path: Path) -> None:
    folder = add(
        tmp_path / "models", "m", str(sentencepiece_origin), convert_tokenizer=torch_models.convert_tokenizer
    ).path
    assert "tokenizer.json" in json.loads((folder / MANIFEST).read_text())["files"]
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    pair = tokenizer.encode("the sun", "rises")
    assert (pair.tokens[0], pair.tokens[-1], pair.tokens.count("[SEP]")) == ("[CLS]", "[SEP]", 2)
    assert "[UNK]" not in pair.tokens


def test_a_tokenizer_that_differs_from_sentencepiece_is_refused(
    sentencepiece_origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))  # noqa: S106 - no password
    made = SimpleNamespace(backend_tokenizer=empty)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: made)
    with pytest.raises(ModelFolderError, match=r"spm\.model could not be converted.*with SentencePiece"):
        add(tmp_path, "m", str(sentencepiece_origin), convert_tokenizer=torch_models.convert_tokenizer)


class _Hub(http.server.SimpleHTTPRequestHandler):
    """A model hub with one repository: the files of one commit."""

    commit: ClassVar = "6c749ce3425cd33b46d187e45b92bbf96ee12ec7"
    root: ClassVar[Path]
    requested: ClassVar[list[str]]

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.requested.append(self.path)
        path = self.path.partition("?")[0]
        repository = "cross-encoder/nli-deberta-v3-base"
        here = [each for each in sorted(self.root.rglob("*")) if each.is_file()]
        names = [each.relative_to(self.root).as_posix() for each in here]
        files = f"/{repository}/resolve/{self.commit}/"
        if path == f"/api/models/{repository}/revision/{self.commit}":
            siblings = [{"rfilename": name} for name in names]
            body = json.dumps({"id": repository, "sha": self.commit, "siblings": siblings}).encode()
        elif path == f"/api/models/{repository}/tree/{self.commit}":
            tree = [
                {"type": "file", "path": name, "size": each.stat().st_size, "oid": "0" * 40}
                for name, each in zip(names, here, strict=True)
            ]
            body = json.dumps(tree).encode()
        elif path.startswith(files) and (self.root / path.removeprefix(files)).is_file():
            body = (self.root / path.removeprefix(files)).read_bytes()
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.commit)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Logs nothing."""


def test_the_default_entailment_model_is_downloaded_by_commit(sentencepiece_origin: Path, tmp_path: Path) -> None:
    _Hub.root, _Hub.requested = sentencepiece_origin, []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        environment = {
            **os.environ,
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "TRUTHGRAPH_MODELS_DIR": str(tmp_path / "models"),
            "TRUTHGRAPH_CACHE_DIR": str(tmp_path / "cache"),
        }
        command = [sys.executable, "-m", "service", "models", "add", "nli-deberta-v3-base"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    folder = check(tmp_path / "models", "nli-deberta-v3-base")
    assert folder.source == KNOWN["nli-deberta-v3-base"]
    assert (folder.path / "model.safetensors").read_text() == "weights"
    assert not [path for path in _Hub.requested if path.endswith((".bin", ".py"))]


@pytest.mark.parametrize("source", ["owner/model", "owner/model@main", "owner/model@abc123"])
def test_a_hub_model_without_a_commit_is_refused(source: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="is not a folder"):
        add(tmp_path, "m", source)
