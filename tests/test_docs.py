"""Checks the documentation against the code: commands run or parse, links resolve, tables are complete."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from functools import cache
from itertools import dropwhile
from pathlib import Path

import pytest

from buildkit.cli.main import COMMANDS
from tests.support.images import LayerMaker, make_image, oci_files, write_archive
from tests.support.installed import install
from tests.support.sessions import sessions

PROJECT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path
    for path in [*PROJECT.glob("*.md"), *(PROJECT / "docs").rglob("*.md")]
    if path.name != "CHANGELOG.md" and "measured" not in path.parts
)
EXTERNAL = {"docker", "curl", "pip", "export", "part()", "docker/make-secrets", "python3", ".venv/bin/pre-commit"}
"""Programs of others: only the shell syntax of their lines is checked."""


@dataclass(frozen=True)
class Fence:
    """A shell block of a page. Its `kind`: a test runs `run`, checks only the options of `parse`; .ci/run runs `ci`."""

    page: Path
    line: int
    kind: str
    text: str

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command, without comments; continued lines are joined."""
        lines = self.text.replace("\\\n", " ").splitlines()
        parts = [re.sub(r"\s[<>]\S+", "", part) for line in lines for part in line.split("  #")[0].split("&&")]
        words = [shlex.split(part, comments=True) for part in parts if part.strip() and not part.startswith("#")]
        return [list(dropwhile(re.compile(r"[A-Z_]+=").match, each)) for each in words]  # without variables before it

    def __str__(self) -> str:
        return f"{self.page.relative_to(PROJECT)}:{self.line}"


def fences() -> list[Fence]:
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in re.finditer(
            r"^ *(?:<!-- test: (\w+) -->\n *)?```sh ?(build|tests)?\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE
        ):
            kind = match[1] or ("ci" if match[2] else "")
            found.append(Fence(page, text[: match.start()].count("\n") + 1, kind, textwrap.dedent(match[3])))
    return found


@cache
def help_of(*program: str) -> str:
    """Returns the output of the program with --help."""
    command = [sys.executable, "-m", *program, "--help"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def as_modules(words: list[str]) -> list[list[str]]:
    """Returns the arguments of `python -m` that *words* run: one list for each session of a nox line."""
    if words[0].endswith("nox"):
        assert words[1] == "-s", words
        split = words.index("--") if "--" in words else len(words)
        names, rest = words[2:split], words[split + 1 :]
        unknown = set(names) - set(sessions())
        assert not unknown, f"no such session: {unknown}"
        return [["buildkit", command, *rest] for command in map(sessions().get, names) if command]
    if words[:2] == ["python", "-m"]:
        return [words[2:]]
    return []


@pytest.mark.parametrize("fence", fences(), ids=str)
def test_docs_block_has_a_kind_and_valid_syntax(fence: Fence) -> None:
    assert fence.kind in {"run", "parse", "ci"}, "put <!-- test: run --> or <!-- test: parse --> above the block"
    done = subprocess.run(["bash", "-n"], input=fence.text, capture_output=True, text=True, check=False)
    assert not done.stderr


@pytest.mark.parametrize("fence", [fence for fence in fences() if fence.kind == "parse"], ids=str)
def test_docs_command_has_documented_options(fence: Fence) -> None:
    for words in fence.commands:
        modules = as_modules(words)
        assert modules or words[0].split("=")[0] in EXTERNAL or words[0].endswith(("nox", "pip")), words
        for program, *arguments in modules:
            # The command and, for the service, its action: `keys add`.
            first = arguments[: {"service": 2, "buildkit": 1}.get(program, 0)]
            names = [word for word in first if re.fullmatch(r"[a-z-]+", word)]
            options = {word.split("=")[0] for word in arguments if re.match(r"--\w", word)}
            missing = options - set(re.findall(r"--[\w-]+", help_of(program, *names)))
            assert not missing, f"{' '.join([program, *names])} has no {missing}"


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `before.tar` and `image.tar`, two small images of two layers, and an environment in `TREE`."""
    folder = tmp_path_factory.mktemp("docs")
    base = LayerMaker().file("usr/bin/python3", b"p" * 50_000).tar()
    for name, content in (("before", b"one"), ("image", b"two")):
        layers = [base, LayerMaker().file("app/main.py", content * 1000).tar()]
        write_archive(oci_files(make_image(layers)), folder / f"{name}.tar")
    install(folder / "TREE", "toolbox", {"toolbox/__init__.py": b"", "toolbox/tests/test_toolbox.py": b""})
    return folder


@pytest.mark.parametrize("fence", [fence for fence in fences() if fence.kind == "run"], ids=str)
def test_docs_command_runs(fence: Fence, sample: Path) -> None:
    for words in fence.commands:
        for module in as_modules(words):
            command = [sys.executable, "-m", *module]
            environment = {"PYTHONPATH": str(PROJECT), "PATH": "/usr/bin:/bin", "HOME": str(sample)}
            done = subprocess.run(command, cwd=sample, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{' '.join(words)}\n{done.stderr}"


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_docs_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), f"{target} does not exist"
        assert not anchor or anchor in anchors(file), f"{file.name} has no heading for #{anchor}"


def test_pictures_script_makes_both_pictures(browser: str, sample: Path, tmp_path: Path) -> None:
    command = [sys.executable, "docs/make_pictures.py", str(sample / "image.tar"), "--output", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "PATH": f"{Path(browser).parent}:{os.environ['PATH']}"}
    subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, check=True)

    assert "Layers" in (tmp_path / "measure.svg").read_text()
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")


def test_documentation_builds_without_broken_links(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


def test_module_map_is_the_one_of_the_docstrings() -> None:
    program = "import make_module_map as page; raise SystemExit(page.updated_page() != page.PAGE.read_text())"
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT / "docs", check=False)

    assert done.returncode == 0, "run `python docs/make_module_map.py`"


def test_docs_commands_page_lists_every_command() -> None:
    page = (PROJECT / "docs" / "commands.md").read_text()

    assert [command.name for command in COMMANDS if f"| `{command.name}` |" not in page] == []


def test_readme_is_at_most_150_lines() -> None:
    assert len((PROJECT / "README.md").read_text().splitlines()) <= 150


def test_buildkit_folder_has_at_most_16_entries() -> None:
    entries = [path.name for path in (PROJECT / "buildkit").iterdir() if not path.name.startswith(("__", "."))]

    assert len(entries) <= 16
