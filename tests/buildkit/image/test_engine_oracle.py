"""Compares our merged file system with the files that a real engine unpacks.

Images are loaded from archives, so the tests need neither a base image nor a registry. `docker export` of a container
that never ran gives the files of the image.
"""

import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from buildkit.image.analyze import analyze
from buildkit.image.model import FileRecord, Measurement
from buildkit.image.read import ReadOptions, read_image
from tests.support.images import LayerMaker, MadeImage, digest, docker_files, make_image, oci_files, write_archive

# files that the engine adds to every container (moby, daemon/initlayer/setup_unix.go)
INITIAL = {".dockerenv", "dev", "dev/console", "dev/pts", "dev/shm", "etc", "etc/hostname", "etc/hosts", "etc/mtab"}
INITIAL |= {"etc/resolv.conf", "proc", "sys"}

BASE = (
    LayerMaker()
    .directory("etc")
    .file("etc/motd", "hello", mode=0o600)
    .file("etc/big", bytes(range(256)) * 5000)
    .hardlink("etc/big2", "etc/big")
    .symlink("lib", "usr/lib")
    .file("usr/lib/a.so", "a" * 10_000, mode=0o755)
    .file("opt/tree/one", "1" * 700)
    .file("opt/tree/two", "2" * 700)
    .file("opt/tree/deep/three", "3" * 700)
    .directory("var/empty", mode=0o700, uid=12, gid=13)
    .file("caf\N{LATIN SMALL LETTER E WITH ACUTE}", "name")
    .file("n" * 120, "long name")
)
IMAGES: dict[str, list[LayerMaker]] = {
    "whiteouts": [
        BASE,
        LayerMaker().directory("etc").whiteout("etc/motd").whiteout("opt/tree").whiteout("etc/big"),
        LayerMaker().file("opt/tree/one", "again").whiteout("usr/lib/a.so").whiteout("not/there"),
    ],
    "opaque directories": [
        BASE,
        LayerMaker().directory("opt").directory("opt/tree").opaque("opt/tree").file("opt/tree/one", "1" * 700),
        LayerMaker().directory("opt/tree").file("opt/tree/four", "4").opaque("opt/tree"),
    ],
    "chown": [
        BASE,
        LayerMaker()
        .directory("opt", uid=1000)
        .directory("opt/tree", uid=1000)
        .file("opt/tree/one", "1" * 700, uid=1000, gid=1000)
        .file("opt/tree/two", "2" * 700, uid=1000, gid=1000),
    ],
    "hard links": [
        BASE,
        LayerMaker().file("x/a", "content").hardlink("x/b", "x/a").hardlink("x/c", "x/b"),
        LayerMaker().whiteout("x/a").file("x/c", "other"),
    ],
    "links and kinds that change": [
        BASE,
        LayerMaker().file("lib/b", "below a link of a lower layer").file("opt/tree", "a file now"),
        LayerMaker().directory("etc/motd").file("etc/motd/x", "1").symlink("etc/big", "motd/x"),
        LayerMaker()
        .symlink("new", "usr/lib")
        .file("new/c", "below a link of this layer")
        .symlink("out", "../../../.."),
        LayerMaker().add("run/pipe", tarfile.FIFOTYPE).file("d", "1").file("d", "22"),
    ],
    "sparse and GNU": [
        LayerMaker(tarfile.GNU_FORMAT).file("p/" * 70 + "f", "long").symlink("s", "t/" * 90),
        LayerMaker().file(
            "GNUSparseFile.1/s",
            b"1\n512\n512\n".ljust(512, b"\0") + b"A" * 512,
            pax_headers={
                "GNU.sparse.major": "1",
                "GNU.sparse.minor": "0",
                "GNU.sparse.name": "sparse",
                "GNU.sparse.realsize": "9000",
            },
        ),
    ],
}


@dataclass(frozen=True)
class LoadedImage:
    """The image *tag* in an engine, whose client is the command *docker*."""

    docker: Sequence[str]
    tag: str

    def measure(self) -> Measurement:
        host = self.docker[2] if len(self.docker) > 1 else ""
        return analyze(read_image(self.tag, ReadOptions(engine_host=host)))

    def run(self, *arguments: str, **options: bytes) -> bytes:
        return subprocess.run(
            [*self.docker, *arguments], check=True, capture_output=True, input=options.get("stdin")
        ).stdout

    def load(self, archive: Path) -> None:
        with archive.open("rb") as file:
            subprocess.run([*self.docker, "load"], stdin=file, check=True, capture_output=True)

    def unpacked(self) -> dict[str, tuple[str, int, str]]:
        """Returns kind, size, and digest or target of each file that the engine unpacked, by path."""
        container = self.run("create", self.tag, "never-run").decode().strip()
        try:
            exported = self.run("export", container)
        finally:
            self.run("rm", container)
        return dict(tar_contents(exported))


def tar_contents(archive_bytes: bytes) -> Iterator[tuple[str, tuple[str, int, str]]]:
    first: dict[str, tuple[str, int, str]] = {}
    with tarfile.open(fileobj=io.BytesIO(archive_bytes)) as archive:
        for member in archive:
            name = member.name.strip("/")
            file = archive.extractfile(member) if member.isreg() else None
            if file is not None:
                content = file.read()
                first[name] = ("file", len(content), hashlib.sha256(content).hexdigest())
                yield name, first[name]
            elif member.islnk():
                yield name, first[member.linkname.strip("/")]
            else:
                kind = "directory" if member.isdir() else "symlink" if member.issym() else "other"
                yield name, (kind, 0, member.linkname)


@pytest.fixture
def loaded(docker: Sequence[str], request: pytest.FixtureRequest) -> Iterator[LoadedImage]:
    tag = f"truthgraph-test-oracle:{hashlib.sha256(request.node.name.encode()).hexdigest()[:12]}"
    image = LoadedImage(docker, tag)
    yield image
    subprocess.run([*docker, "image", "rm", "--force", tag], capture_output=True, check=False)


def as_seen(record: FileRecord, files: dict[str, FileRecord]) -> tuple[str, int, str]:
    if record.kind in {"file", "hardlink"}:
        return "file", files[record.link or record.path].size_bytes, record.sha256
    return {"directory": "directory", "symlink": "symlink"}.get(record.kind, "other"), 0, record.link


def assert_matches_engine(measurement: Measurement, image: LoadedImage) -> None:
    records = {record.path: record for record in measurement.files or ()}
    ours = {path: as_seen(record, records) for path, record in records.items() if path not in INITIAL}
    theirs = {path: value for path, value in image.unpacked().items() if path and path not in INITIAL}
    assert ours == theirs
    assert measurement.totals.final_bytes == sum(record.size_bytes for record in records.values())


@pytest.mark.parametrize("compression", ["none", "gzip"])
@pytest.mark.parametrize("name", IMAGES)
def test_files_are_those_of_the_engine(loaded: LoadedImage, tmp_path: Path, name: str, compression: str) -> None:
    layers = [maker.tar() for maker in IMAGES[name]]
    made = make_image(layers, compression="gzip" if compression == "gzip" else "none")
    archive = write_archive(
        oci_files(made, tag=f"docker.io/library/{loaded.tag}") | docker_manifest(made, loaded.tag), tmp_path / "i.tar"
    )
    loaded.load(archive)
    from_engine = loaded.measure()
    assert_matches_engine(from_engine, loaded)
    # sizes of the layers by the standard library's tar reader
    assert [layer.unpacked_bytes for layer in from_engine.layers] == [regular_bytes(layer) for layer in layers]
    # the engine's export, read as a file, is the same as its stream
    (tmp_path / "saved.tar").write_bytes(loaded.run("save", loaded.tag))
    saved = analyze(read_image(str(tmp_path / "saved.tar")))
    assert (saved.totals, saved.layers, saved.files) == (from_engine.totals, from_engine.layers, from_engine.files)


def regular_bytes(layer: bytes) -> int:
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        return sum(member.size for member in archive if member.isreg())


def docker_manifest(made: MadeImage, tag: str) -> dict[str, bytes]:
    """Returns the manifest.json that `docker load` needs."""
    names = [f"blobs/sha256/{digest(layer).removeprefix('sha256:')}" for layer in made.layers]
    config = f"blobs/sha256/{digest(made.config).removeprefix('sha256:')}"
    return {"manifest.json": json.dumps([{"Config": config, "RepoTags": [tag], "Layers": names}]).encode()}


def test_older_archive_has_the_files_of_the_engine(loaded: LoadedImage, tmp_path: Path) -> None:
    made = make_image([maker.tar() for maker in IMAGES["whiteouts"]])
    archive = write_archive(docker_files(made, tag=loaded.tag), tmp_path / "old.tar")
    loaded.load(archive)
    assert_matches_engine(analyze(read_image(str(archive))), loaded)
    assert loaded.measure().files == analyze(read_image(str(archive))).files


def test_copy_chown_and_copy_link_are_read_as_built(loaded: LoadedImage, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_text("x" * 1234)
    (tmp_path / "Dockerfile").write_text(
        "FROM scratch\nCOPY tree /srv/tree\nCOPY --chown=1000:1000 tree /srv/tree\nCOPY --link tree /other\n"
    )
    loaded.run("buildx", "build", "--load", "--provenance=true", "--tag", loaded.tag, str(tmp_path))
    measurement = loaded.measure()
    assert_matches_engine(measurement, loaded)
    assert [layer.instruction for layer in measurement.layers] == [
        "COPY tree /srv/tree",
        "COPY --chown=1000:1000 tree /srv/tree",
        "COPY tree /other",
    ]
    (group,) = measurement.waste
    assert (group.cause, group.wasted_bytes, group.stored_by, group.caused_by) == ("metadata only", 1234, 0, 1)


@pytest.mark.parametrize(
    "output",
    [
        "type=oci,tar=true,compression=gzip",
        "type=oci,tar=true,compression=zstd,force-compression=true",
        "type=oci,tar=true,compression=estargz,force-compression=true,oci-mediatypes=true",
        "type=oci,tar=true,compression=uncompressed,force-compression=true",
        "type=oci,tar=false,compression=gzip",
        "type=docker,tar=true",
    ],
)
def test_output_of_buildx_equals_the_engines_image(loaded: LoadedImage, tmp_path: Path, output: str) -> None:
    """Also in an index with provenance, as `type=oci` writes it."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_text("x" * 1234)
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY tree /srv/tree\nCOPY tree /other\n")
    build = ["buildx", "build", "--provenance=mode=max", "--tag", loaded.tag, str(tmp_path)]
    if "type=docker" in output:
        build.remove("--provenance=mode=max")  # this exporter does not support attestations
    loaded.run(*build, "--load")
    loaded.run(*build, "--output", f"{output},dest={tmp_path / 'out'}")
    found = analyze(read_image(str(tmp_path / "out")))
    from_engine = loaded.measure()
    is_estargz = "estargz" in output
    if not is_estargz:  # eStargz adds files to every layer
        assert found.files == from_engine.files
        assert found.totals.unpacked_bytes == from_engine.totals.unpacked_bytes == 2 * 1234
    assert [layer.instruction for layer in found.layers] == ["COPY tree /srv/tree", "COPY tree /other"]
    compressions = {"gzip": "gzip", "zstd": "zstd", "estargz": "gzip", "uncompressed": "none"}
    if "compression=" in output:
        stated = output.split("compression=")[1].split(",", maxsplit=1)[0]
        assert {layer.compression for layer in found.layers} == {compressions[stated]}
