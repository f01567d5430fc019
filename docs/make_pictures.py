"""Makes the pictures of the README from a measured image: `nox -s pictures -- IMAGE`.

Writes docs/pictures/measure.svg (the terminal's report, by rich) and docs/pictures/page.png (the HTML page, by headless
Chromium). Both come from the program that users run, so they show what it shows.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from buildkit.image.model import load
from buildkit.report.terminal import measurement_tables

PICTURES = Path(__file__).parent / "pictures"
COLUMNS = 100
PAGE_PIXELS = (1280, 1000)


def main() -> None:
    """Measures the image, renders both reports and takes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", nargs="?", default="truthgraph-api:latest", help="the image (default: %(default)s)")
    parser.add_argument(
        "--output", type=Path, default=PICTURES, help="folder for the pictures (default: docs/pictures)"
    )
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        saved, page = Path(folder, "measurement.json"), Path(folder, "page.html")
        for form, path in (("json", saved), ("html", page)):
            command = ["measure", options.image, "--format", form, "--output", str(path)]
            subprocess.run([sys.executable, "-m", "buildkit", *command], check=True)
        with Path(folder, "discarded").open("w") as discarded:
            console = Console(record=True, width=COLUMNS, file=discarded, force_terminal=True)
            console.print(f"$ nox -s measure-image -- {options.image}\n")
            console.print(measurement_tables(load(saved)))
            svg = console.export_svg(title="measure-image", unique_id="measure")
        # Without rich's web fonts: a picture in a README must not load anything.
        svg = re.sub(r"@font-face \{.*?\}\n", "", svg, flags=re.DOTALL)
        (options.output / "measure.svg").write_text(svg)
        width, height = PAGE_PIXELS
        chromium = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        offline = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
        shot = [f"--window-size={width},{height}", f"--screenshot={options.output / 'page.png'}", page.as_uri()]
        profile = f"--user-data-dir={folder}/profile"
        subprocess.run([*chromium, *offline, profile, *shot], check=True, capture_output=True)


if __name__ == "__main__":
    main()
