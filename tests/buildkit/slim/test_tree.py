from __future__ import annotations

from pathlib import Path

import pytest

from buildkit.slim.tree import NotInstalledTree, hash_file, read_tree, remove_files, update_records
from tests.support.installed import SITE, install, untrue_rows


def test_read_tree_reads_environment_and_site_packages(tmp_path: Path) -> None:
    install(tmp_path / "venv", "one", {"one/a.py": b"a", "../../../bin/one": b"#!"})
    install(tmp_path / "site", "two", {"two/b.py": b"bb"}, site=".")

    venv, site = read_tree(tmp_path / "venv"), read_tree(tmp_path / "site")

    assert venv.sites == (SITE,)
    assert [file.path for file in venv.files if not file.path.endswith(("RECORD", "METADATA"))] == [
        "bin/one",
        f"{SITE}/one/a.py",
    ]
    assert set(venv.recorded) >= {"bin/one", f"{SITE}/one/a.py"}
    assert dict(venv.by_site())["."] == ["bin/one"]
    assert site.sites == (".",)
    assert set(site.recorded) >= {"two/b.py"}


def test_read_tree_folder_above_an_environment_raises(tmp_path: Path) -> None:
    install(tmp_path / "work" / "venv", "one", {"one/a.py": b"a"})
    (tmp_path / "empty").mkdir()

    for folder in (tmp_path / "work", tmp_path, tmp_path / "empty", tmp_path / "absent", Path("/")):
        with pytest.raises(NotInstalledTree) as error:
            read_tree(folder)
        assert error.value.path == folder


def test_read_tree_vendored_distribution_is_only_files(tmp_path: Path) -> None:
    install(tmp_path, "one", {"one/_vendor/two.dist-info/RECORD": b"two/gone.py,sha256=AAAA,1\n"})

    read = read_tree(tmp_path)

    assert read.records == (f"{SITE}/one-1.0.dist-info/RECORD",)


def test_update_records_changes_only_lines_of_changed_files(tmp_path: Path) -> None:
    install(tmp_path, "one", {"one/a.py": b"a", 'one/odd, "name".so': b"long", "one/sub/c.h": b"c"})
    record = tmp_path / SITE / "one-1.0.dist-info/RECORD"
    text = record.read_text().replace('one/odd, "name".so', '"one/odd, ""name"".so"')
    record.write_text(text)
    read = read_tree(tmp_path)
    changed = tmp_path / SITE / 'one/odd, "name".so'
    changed.write_bytes(b"sh")

    remove_files(tmp_path, [f"{SITE}/one/sub/c.h"])
    rewritten = update_records(
        read,
        removed={f"{SITE}/one/sub/c.h"},
        changed={f'{SITE}/one/odd, "name".so': (hash_file(changed), 2)},
    )

    assert list(rewritten) == [f"{SITE}/one-1.0.dist-info/RECORD"]
    assert untrue_rows(tmp_path) == []
    assert set(record.read_text().splitlines()) - set(text.splitlines()) == {
        line for line in record.read_text().splitlines() if "odd" in line
    }
    assert not (tmp_path / SITE / "one/sub").exists()
    assert (tmp_path / SITE / "one").is_dir()
    assert update_records(read_tree(tmp_path), removed=set(), changed={}) == {}


def test_remove_files_removes_empty_parent_folders(tmp_path: Path) -> None:
    for path in ("x/a/1/f", "x/a/2/f", "x/b/f"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()

    remove_files(tmp_path, ["x/a/1/f", "x/a/2/f", "x/b/f"])

    assert list(tmp_path.iterdir()) == []
