"""The HTML page: well-formed, complete without its charts, loads nothing, and a real browser draws it."""

import itertools
import re
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from buildkit.check.budget import BudgetReport, BudgetResult
from buildkit.diff.diff import compare
from buildkit.image.gpu_code import GpuArchitecture, GpuCodeMeasurement, GpuLibrary
from buildkit.image.model import Measurement
from buildkit.report.builds import Timeline, TimelineStep
from buildkit.report.content import ImageReport
from buildkit.report.html import PlotlyMissing, measurement_page
from tests.support.images import LayerMaker, measure_layers
from tests.support.reports import render_in_browser

SITE = "opt/venv/lib/python3.13/site-packages"
HOSTILE = "<img src=x onerror=document.title='owned'></script><script>document.title='owned'"
VOID = {"meta", "input", "br", "img", "link", "hr"}


def measured(folder: Path, *layers: LayerMaker) -> Measurement:
    return measure_layers(folder, *layers, instructions=[f"RUN {HOSTILE} {number}" for number in range(len(layers))])


def full_page(folder: Path) -> str:
    """A page with every section, whose names are all HTML."""
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
    steps = (
        TimelineStep(HOSTILE, HOSTILE, 0.0, 1.5, is_cached=False),
        TimelineStep("b", "y", 1.5, 0.1, is_cached=True),
    )
    report = ImageReport(
        after,
        comparison=compare(before, after),
        budgets=BudgetReport(HOSTILE, (BudgetResult("layers", "failed", 1, 2, HOSTILE),)),
        timelines=(Timeline(HOSTILE, steps),),
        history=(replace(before, measured_at="2026-11-23T10:00:00Z"), replace(after, measured_at=HOSTILE)),
        before=HOSTILE,
        after="after",
    )
    return measurement_page(report)


def page_of(folder: Path, *layers: LayerMaker) -> str:
    return measurement_page(ImageReport(measured(folder, *layers)))


@dataclass
class Outline(HTMLParser):
    """The tags and texts of a page; fails if tags are not balanced."""

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


def test_page_is_well_formed_and_loads_nothing(outline: Outline, text: str) -> None:
    assert outline.open_tags == []
    for tag, attributes in outline.tags:
        assert "src" not in attributes, tag
        assert tag not in {"link", "iframe", "img"}, tag
        href = attributes.get("href")
        assert href is None or href.startswith("#"), href
    assert "default-src 'none'" in text
    assert len(text.encode()) < 6_000_000


def test_names_from_an_image_are_escaped(outline: Outline) -> None:
    assert sum(tag == "script" for tag, _ in outline.tags) == 3
    assert not any(name.startswith("on") for _, attributes in outline.tags for name in attributes)
    assert any(HOSTILE in each for each in outline.texts)


def test_tables_have_captions_and_charts_descriptions(outline: Outline) -> None:
    tables = sum(tag == "table" for tag, _ in outline.tags)
    assert tables >= 12
    assert sum(tag == "caption" for tag, _ in outline.tags) == tables
    assert {attributes.get("scope") for tag, attributes in outline.tags if tag == "th"} == {"row", "col"}
    charts = [attributes for _, attributes in outline.tags if "data-chart" in attributes]
    assert {each["data-chart"] for each in charts} == {"treemap", "layers", "timeline-0", "trend"}
    assert all(each.get("role") == "img" and each.get("aria-label") for each in charts)


def test_keyboard_reaches_scrolling_regions_and_headings_are_nested(outline: Outline) -> None:
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


def test_page_of_one_image_has_no_comparison(tmp_path: Path) -> None:
    text = page_of(tmp_path, LayerMaker().file("a", "1"))
    assert "<h2>Changes</h2>" not in text
    assert "<h2>Sizes by folder</h2>" in text


def test_image_without_waste_says_so(tmp_path: Path) -> None:
    assert "No wasted bytes" in page_of(tmp_path / "one", LayerMaker().file("a", "1"))
    assert "No wasted bytes" not in page_of(tmp_path / "two", LayerMaker().file("a", "1"), LayerMaker().file("a", "2"))


def test_gpu_code_has_a_section_and_a_chart(tmp_path: Path) -> None:
    measurement = measured(tmp_path, LayerMaker().file("a", "1"))
    code = GpuCodeMeasurement(
        (GpuArchitecture("sm_90", 7, 1),), (GpuLibrary("lib.so", 0, None, 7, {"sm_90": 7}),), layers_not_searched=(1,)
    )

    text = measurement_page(ImageReport(replace(measurement, gpu_code=code)))

    assert 'data-chart="gpu-code"' in text
    assert "Not searched for GPU code" in text
    assert 'data-chart="gpu-code"' not in measurement_page(ImageReport(measurement))


def test_page_has_the_name_and_the_digest_of_the_image(tmp_path: Path) -> None:
    measurement = measured(tmp_path, LayerMaker().file("a", "1")).renamed("truthgraph-api:latest")

    text = measurement_page(ImageReport(measurement))

    assert "<title>truthgraph-api:latest: image report</title>" in text
    assert str(measurement.image.manifest_digest) in text


def test_image_without_files_has_a_page(tmp_path: Path) -> None:
    assert "<h2>Sizes by folder</h2>" in page_of(tmp_path, LayerMaker())


def test_missing_plotly_is_reported_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(PlotlyMissing, match="plotly"):
        page_of(tmp_path, LayerMaker().file("a", "1"))


@pytest.mark.parametrize("options", [(), ("--window-size=390,844",), ("--blink-settings=preferredColorScheme=0",)])
def test_browser_draws_every_chart_without_an_error(
    browser: str, text: str, tmp_path: Path, options: tuple[str, ...]
) -> None:
    path = tmp_path / "page.html"
    path.write_text(text)
    document, log = render_in_browser(browser, path, *options)
    assert 'data-drawn="yes"' in document
    assert len(re.findall(r'class="main-svg"', document)) >= 4
    assert "treemaplayer" in document
    console = [line for line in log.splitlines() if "CONSOLE" in line]
    assert console == []
    title = re.search(r"<title>(.*?)</title>", document, flags=re.DOTALL)
    assert title is not None
    assert title[1] != "owned"
    assert title[1].startswith("&lt;img")


def test_browser_draws_the_page_of_an_image_without_files(browser: str, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(page_of(tmp_path / "image", LayerMaker()))
    document, log = render_in_browser(browser, path)
    assert 'data-drawn="yes"' in document
    assert "CONSOLE" not in log


def test_filter_hides_rows_and_counts_the_others(browser: str, text: str, tmp_path: Path) -> None:
    """A script at the end of the page types into the filter."""
    script = """<script>
    const input = document.getElementById("file-changes-filter");
    input.value = "torch"; input.dispatchEvent(new Event("input"));
    document.getElementById("theme").click();
    </script></body>"""
    path = tmp_path / "page.html"
    path.write_text(text.replace("</body>\n</html>", f"{script}\n</html>"))
    document, _ = render_in_browser(browser, path)
    count = re.search(r'id="file-changes-count" role="status">(.*?)<', document)
    assert count is not None
    assert re.fullmatch(r"\d+ of \d+ rows shown", count[1])
    assert count[1].split()[0] != count[1].split()[2]
    assert 'data-theme="dark"' in document
