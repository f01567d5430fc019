"""Matches layers and files of two images."""

from pathlib import Path

from buildkit.diff.matching import match_files, match_layers
from buildkit.image.model import Measurement
from tests.support.images import LayerMaker, measure_layers

OLD_SITE = "usr/local/lib/python3.12/dist-packages"
NEW_SITE = "opt/venv/lib/python3.13/site-packages"


def image(folder: Path, *instructions: str) -> Measurement:
    """Measures an image whose layers have different content, even for equal instructions in two images."""
    layers = [
        LayerMaker().file(f"{folder.name}{place}", folder.name * (place + 1)) for place in range(len(instructions))
    ]
    return measure_layers(folder, *layers, instructions=instructions)


def positions(before: Measurement, after: Measurement, base_layers: int = 0) -> list[tuple[int | None, int | None]]:
    return [
        (old.position if old else None, new.position if new else None)
        for old, new in match_layers(before, after, base_layers=base_layers)
    ]


def test_equal_layers_match_even_with_other_instructions(tmp_path: Path) -> None:
    layer = LayerMaker().file("a", "1")
    before = measure_layers(tmp_path / "b", layer, instructions=["RUN one"])
    after = measure_layers(tmp_path / "a", LayerMaker().file("b", "2"), layer, instructions=["RUN other", "RUN two"])
    assert positions(before, after) == [(None, 0), (0, 1)]


def test_layers_of_one_instruction_match(tmp_path: Path) -> None:
    before = image(tmp_path / "b", "COPY a", "RUN make", "COPY b")
    after = image(tmp_path / "a", "COPY a", "COPY b")
    assert positions(before, after) == [(0, 0), (1, None), (2, 1)]


def test_layers_of_similar_instructions_match(tmp_path: Path) -> None:
    before = image(tmp_path / "b", "RUN apt-get install curl", "COPY pyproject.toml ./")
    after = image(tmp_path / "a", "RUN apt-get install curl git")
    assert positions(before, after) == [(0, 0), (1, None)]


def test_layers_of_other_instructions_do_not_match(tmp_path: Path) -> None:
    before = image(tmp_path / "b", "COPY pyproject.toml ./")
    after = image(tmp_path / "a", "RUN apt-get install curl")
    assert positions(before, after) == [(0, None), (None, 0)]


def test_base_layers_match_despite_other_instructions(tmp_path: Path) -> None:
    before = image(tmp_path / "b", "ADD debian.tar /")
    after = image(tmp_path / "a", "RUN a completely different base")
    assert positions(before, after, base_layers=1) == [(0, 0)]


def paths(before: LayerMaker, after: LayerMaker, folder: Path) -> set[tuple[str | None, str | None]]:
    old, new = measure_layers(folder / "b", before), measure_layers(folder / "a", after)
    return {
        (one.path if one else None, other.path if other else None)
        for one, other in match_files(old, new)
        if (one or other).kind == "file"  # type: ignore[union-attr] # one of them is set
    }


def test_files_match_by_path(tmp_path: Path) -> None:
    before, after = LayerMaker().file("a", "1").file("gone", "2"), LayerMaker().file("a", "3").file("new", "4")
    assert paths(before, after, tmp_path) == {("a", "a"), ("gone", None), (None, "new")}


def test_files_of_a_moved_package_match_by_their_place(tmp_path: Path) -> None:
    makers = []
    for site, content in ((OLD_SITE, "1"), (NEW_SITE, "22")):
        maker = LayerMaker().file(f"{site}/web-1.dist-info/RECORD", "web.py,,\nweb-1.dist-info/RECORD,,\n")
        makers.append(maker.file(f"{site}/web.py", content))
    assert (f"{OLD_SITE}/web.py", f"{NEW_SITE}/web.py") in paths(makers[0], makers[1], tmp_path)


def test_moved_files_match_by_name_and_content(tmp_path: Path) -> None:
    before = LayerMaker().file("opt/model", "m").file("opt/other", "o").file("opt/empty")
    after = LayerMaker().file("srv/model", "m").file("srv/changed", "o").file("srv/empty")
    assert paths(before, after, tmp_path) == {
        ("opt/model", "srv/model"),
        ("opt/other", None),
        (None, "srv/changed"),
        ("opt/empty", None),
        (None, "srv/empty"),
    }
