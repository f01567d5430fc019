"""The HTML page: alone in the world, complete without its charts, and drawn by a real browser."""

import itertools
import re
import subprocess
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from buildkit.check.budget import BudgetReport, BudgetResult
from buildkit.diff.diff import compare
from buildkit.image.model import Measurement
from buildkit.report.builds import Timeline, TimelineStep
from buildkit.report.document import PlotlyMissing
from buildkit.report.page import TrendPoint, page
from tests.support.images import LayerMaker, measure_layers

SITE = "opt/venv/lib/python3.13/site-packages"
HOSTILE = "<img src=x onerror=document.title='owned'></script><script>document.title='owned'"
VOID = {"meta", "input", "br", "img", "link", "hr"}


def measured(folder: Path, *layers: LayerMaker) -> Measurement:
    return measure_layers(folder, *layers, instructions=[f"RUN {HOSTILE} {n}" for n in range(len(layers))])


def full_page(folder: Path) -> str:
    lower = (
        LayerMaker().file(f"{SITE}/nvidia/lib/libcudart.so.12", "1" * 5000).file("usr/lib/libcudart.so.12", "2" * 999)
    )
    before = measured(folder / "b", lower.file("root/.cache/uv/x", "3" * 700))
    after = measured(
        folder / "a",
        LayerMaker().file(f"{SITE}/nvidia/lib/libcudart.so.12", "1" * 5000).file(f"{SITE}/torch/a.py", "x" * 300),
        LayerMaker().file(f"{HOSTILE}/{HOSTILE}", "4" * 800).file(f"{SITE}/torch/a.py", "y" * 310),
    )
    after = replace(after, image=replace(after.image, name=HOSTILE, created=HOSTILE))
    verdict = BudgetReport(HOSTILE, (BudgetResult("layers", "failed", 1, 2, HOSTILE),))
    steps = (
        TimelineStep(HOSTILE, HOSTILE, 0.0, 1.5, is_cached=False),
        TimelineStep("b", "y", 1.5, 0.1, is_cached=True),
    )
    return page(
        after,
        comparison=compare(before, after),
        verdict=verdict,
        timelines=[Timeline(HOSTILE, steps)],
        trend=[TrendPoint("2026-11-23T10:00:00Z", before.totals), TrendPoint("2026-11-24T10:00:00Z", after.totals)],
        before=HOSTILE,
        after="after",
    )


@dataclass
class Outline(HTMLParser):
    """Collects what the tests ask about, and checks that tags are balanced."""

    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    open_tags: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open_tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open_tags.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open_tags and self.open_tags[-1] not in {"script", "style"}:
            self.texts.append(data)


@pytest.fixture(scope="module", name="text")
def _text(tmp_path_factory: pytest.TempPathFactory) -> str:
    return full_page(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module", name="outline")
def _outline(text: str) -> Outline:
    outline = Outline()
    outline.feed(text)
    return outline


def test_the_page_is_well_formed_and_asks_for_nothing(outline: Outline, text: str) -> None:
    assert outline.open_tags == []
    for tag, attributes in outline.tags:
        assert "src" not in attributes, tag
        assert tag not in {"link", "iframe", "img"}, tag
        href = attributes.get("href")
        assert href is None or href.startswith("#"), href
    assert "default-src 'none'" in text
    assert len(text.encode()) < 6_000_000


def test_names_from_an_image_are_text_everywhere(outline: Outline) -> None:
    assert sum(tag == "script" for tag, _ in outline.tags) == 3
    assert not any(name.startswith("on") for _, attributes in outline.tags for name in attributes)
    assert any(HOSTILE in each for each in outline.texts)


def test_every_table_has_a_caption_and_heads_and_every_chart_a_description(outline: Outline) -> None:
    tables = sum(tag == "table" for tag, _ in outline.tags)
    assert tables >= 12
    assert sum(tag == "caption" for tag, _ in outline.tags) == tables
    assert {attributes.get("scope") for tag, attributes in outline.tags if tag == "th"} == {"row", "col"}
    charts = [attributes for _, attributes in outline.tags if "data-chart" in attributes]
    assert {each["data-chart"] for each in charts} == {"treemap", "layers", "timeline-0", "trend"}
    assert all(each.get("role") == "img" and each.get("aria-label") for each in charts)


def test_a_keyboard_reaches_what_scrolls_and_headings_are_in_order(outline: Outline) -> None:
    regions = [attributes for _, attributes in outline.tags if "scroll" in (attributes.get("class") or "").split()]
    assert regions
    assert all(each.get("tabindex") == "0" and each.get("aria-label") for each in regions)
    levels = [int(tag[1]) for tag, _ in outline.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in itertools.pairwise(levels))
    names = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(names) == len(set(names))
    links = {attributes["href"] for tag, attributes in outline.tags if tag == "a"}
    assert links <= {f"#{name}" for name in names}
    assert ("html", {"lang": "en"}) in outline.tags


def test_a_page_of_one_measurement_has_no_comparison(tmp_path: Path) -> None:
    text = page(measured(tmp_path, LayerMaker().file("a", "1")))
    assert "What changed" not in text
    assert "Where the bytes are" in text


def test_an_image_without_files_still_has_a_page(tmp_path: Path) -> None:
    assert "Where the bytes are" in page(measured(tmp_path, LayerMaker()))


def test_without_plotly_the_page_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(PlotlyMissing, match="plotly"):
        page(measured(tmp_path, LayerMaker().file("a", "1")))


def rendered(browser: str, path: Path, *options: str) -> tuple[str, str]:
    """Return the document after its scripts ran, and what the browser logged."""
    completed = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            "--virtual-time-budget=8000",
            f"--user-data-dir={path.parent / 'profile'}",
            *options,
            "--dump-dom",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return completed.stdout, completed.stderr


@pytest.mark.parametrize("options", [(), ("--window-size=390,844",), ("--blink-settings=preferredColorScheme=0",)])
def test_a_browser_draws_every_chart_without_a_complaint(
    browser: str, text: str, tmp_path: Path, options: tuple[str, ...]
) -> None:
    path = tmp_path / "page.html"
    path.write_text(text)
    document, log = rendered(browser, path, *options)
    assert 'data-drawn="yes"' in document
    assert len(re.findall(r'class="main-svg"', document)) >= 4
    assert "treemaplayer" in document
    console = [line for line in log.splitlines() if "CONSOLE" in line]
    assert console == []
    title = re.search(r"<title>(.*?)</title>", document, flags=re.DOTALL)
    assert title is not None
    assert title[1] != "owned"
    assert title[1].startswith("&lt;img")


def test_an_image_without_files_is_drawn_too(browser: str, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(page(measured(tmp_path / "image", LayerMaker())))
    document, log = rendered(browser, path)
    assert 'data-drawn="yes"' in document
    assert "CONSOLE" not in log


def test_filters_hide_rows_and_say_how_many_are_left(browser: str, text: str, tmp_path: Path) -> None:
    """Types into the filter as a person does, by a script at the end of the page."""
    script = """<script>
    const input = document.getElementById("file-changes-filter");
    input.value = "torch"; input.dispatchEvent(new Event("input"));
    document.getElementById("theme").click();
    </script></body>"""
    path = tmp_path / "page.html"
    path.write_text(text.replace("</body>\n</html>", f"{script}\n</html>"))
    document, _ = rendered(browser, path)
    count = re.search(r'id="file-changes-count" role="status">(.*?)<', document)
    assert count is not None
    assert re.fullmatch(r"\d+ of \d+ rows shown", count[1])
    assert count[1].split()[0] != count[1].split()[2]
    assert 'data-theme="dark"' in document
