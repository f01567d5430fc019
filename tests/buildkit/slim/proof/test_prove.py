"""The proof on a small tree with a workload of our own: what it must notice is planted, one thing at a time."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from buildkit.slim import prove
from buildkit.slim.__main__ import main
from tests.support.elf import EntrySpec, Library, container
from tests.support.installed import install, snapshot

if TYPE_CHECKING:
    from pathlib import Path

# Answers as torch would: from the GPU code that it finds in its library. `site/answers.json` plants the rest.
WORKLOAD = r"""
import json, os, sys, time
site = os.environ["PYTHONPATH"]
planted = json.load(open(site + "/answers.json"))
library = site + "/torch/lib/libtorch_cuda.so"
has_code = bytes([90]) * 9000 in open(library, "rb").read()
is_copy = "/pruned" in site or "/control" in site
cases = {
    "first kernel": "digest" if has_code else "no kernel image is available for execution on the device",
    "matmul": "other" if planted.get("is_changed") and is_copy else "digest",
    "loading": os.environ["CUDA_MODULE_LOADING"],
}
if planted.get("is_lost"):
    cases["fft"] = "RuntimeError: CUFFT_NOT_SUPPORTED" if is_copy else "digest"
    cases["has cudnn"] = str("--without-cudnn" not in sys.argv)
if planted.get("called") and is_copy and "--served" in sys.argv:
    print("starting", planted["called"], planted["called"], sep="\n", file=sys.stderr)
if "--served" in sys.argv:
    cases.update(planted.get("served", {}))
if planted.get("is_noisy"):
    cases["matmul"] = str(time.monotonic_ns())
if planted.get("is_broken"):
    sys.exit("torch does not import")
json.dump({
    "torch": "2.13.0", "cuda": "13.0", "python": "3.13", "device": planted.get("device"),
    "capability": planted.get("capability"), "cases": cases,
    "start": {"import_seconds": 2.0 - is_copy, "host_bytes": 7},
    "mapped": [planted.get("mapped") or library],
}, open(sys.argv[1], "w"))
"""


def code(architecture: int) -> EntrySpec:
    return EntrySpec(architecture=architecture, payload=bytes([architecture]) * 9000)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "workload.py").write_text(WORKLOAD)
    monkeypatch.setattr(prove, "_WORKLOAD", tmp_path / "workload.py")
    root = tmp_path / "site-packages"
    library = Library(fatbin=[container(code(80), code(90), code(100))])
    install(root, "torch", {"torch/lib/libtorch_cuda.so": library.build(), "torch/include/x.h": b""}, site=".")
    plant(root)
    return root


def plant(site: Path, **answers: object) -> None:
    (site / "answers.json").write_text(json.dumps(answers))


def run(site: Path, *options: str) -> tuple[int, dict[str, object]]:
    work = site.parent / "proofs/work"  # neither folder is there at first
    report = site.parent / "proofs/reports/proof.json"
    status = main([str(site), "--prove", "--work", str(work), "--report", str(report), *options])
    assert list(work.iterdir()) == []
    return status, json.loads(report.read_text())


def test_without_a_gpu_the_proof_passes_and_says_that_no_device_verified_it(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(site)

    status, proof = run(site)

    assert (status, proof["failures"], proof["is_verified_on_device"]) == (0, [], False)
    assert (proof["targets"], proof["control"], proof["compared_libraries"]) == (["9.0"], None, 1)
    assert proof["start"] == {
        "before": {"import_seconds": 2.0, "host_bytes": 7},
        "after": {"import_seconds": 1.0, "host_bytes": 7},
    }
    said = capsys.readouterr().err
    assert "NOT VERIFIED on a device" in said
    assert all(claim in said for claim in ("driver takes the pruned containers", "the same bits", "negative control"))
    assert all(claim in said for claim in ("no nvJitLink", "no cuobjdump", "import: 2.00 s before, 1.00 s after"))
    assert len(proof["not_verified"]) == said.count("  not verified: ")  # type: ignore[arg-type] # JSON
    assert snapshot(site) == before
    assert run(site, "--require-device")[0] == 1


def test_with_a_gpu_the_tree_for_another_one_must_fail(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant(site, device="H200", capability="9.0")

    status, proof = run(site, "--require-device")

    assert (status, proof["failures"], proof["is_verified_on_device"]) == (0, [], True)
    assert proof["control"] == "no kernel image is available for execution on the device"
    assert not any("no GPU" in claim for claim in proof["not_verified"])  # type: ignore[attr-defined] # JSON
    assert "verified on the device" in capsys.readouterr().err


@pytest.mark.usefixtures("gcc")
def test_on_a_gpu_what_a_rule_takes_out_is_named_and_not_compared(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(site, device="H200", capability="9.0", is_lost=True)

    status, proof = run(site, "--profile", "inference", "--require-device")

    assert (status, proof["failures"]) == (0, [])
    assert "a rule takes out what they need: fft (stub-cufft)" in capsys.readouterr().err
    cases: list[dict[str, object]] = proof["cases"]  # type: ignore[assignment] # JSON
    assert {case["before"] for case in cases if case["name"] == "has cudnn"} == {"False"}
    assert run(site, "--profile", "single")[0] == 1


@pytest.mark.usefixtures("gcc")
def test_a_stand_in_that_the_service_calls_fails_the_proof(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant(site)
    status, proof = run(site, "--profile", "inference")
    assert (status, proof["called"]) == (0, [])
    assert "of what the profile leaves out, the service's own cases call: nothing" in capsys.readouterr().err
    call = "libcufft.so.12: cufftExecR2C: called, but this image's profile leaves it out (slim rule stub-cufft)."
    plant(site, called=call)

    status, proof = run(site, "--profile", "inference")

    assert (status, proof["called"]) == (1, [call])
    assert proof["failures"] == [f"the service calls what the profile leaves out: {call}"]
    assert run(site, "--profile", "single")[1]["called"] is None


@pytest.mark.usefixtures("gcc")
def test_a_case_of_the_service_that_did_not_run_is_not_verified(site: Path) -> None:
    nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    plant(site, served={"embeddings": nothing, "encoder": "digest", "classifier": "OSError: no file"})

    not_verified = run(site, "--profile", "inference")[1]["not_verified"]

    told = [claim for claim in not_verified if "did not run" in claim]  # type: ignore[attr-defined] # JSON
    assert [claim.partition(" did")[0] for claim in told] == ["classifier", "embeddings"]


def test_a_control_that_passes_fails_the_proof(site: Path) -> None:
    """A tree for another GPU that works means that the work did not run on the pruned files."""
    plant(site, device="A100", capability="8.0")

    status, proof = run(site)

    assert status == 1
    assert any("negative control" in failure for failure in proof["failures"])  # type: ignore[attr-defined] # JSON


def test_another_result_fails_the_proof(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant(site, is_changed=True)

    status, proof = run(site)

    assert status == 1
    assert proof["failures"] == ["matmul (LAZY): digest became other", "matmul (EAGER): digest became other"]
    assert "FAILED matmul (LAZY)" in capsys.readouterr().err


def test_what_the_original_does_not_repeat_is_named_and_not_counted(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(site, is_noisy=True)

    status, _ = run(site)

    assert status == 0
    assert "the original differs from itself: matmul" in capsys.readouterr().err


def test_a_process_that_maps_the_original_fails_the_proof(site: Path) -> None:
    plant(site, mapped=str(site / "torch/lib/libtorch_cuda.so"))

    status, proof = run(site)

    assert status == 1
    assert any("of the original was mapped" in failure for failure in proof["failures"])  # type: ignore[attr-defined] # JSON


def test_an_original_that_does_not_run_is_one_clear_error(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant(site, is_broken=True)

    assert main([str(site), "--prove", "--work", str(site.parent)]) == 2
    assert "torch does not import" in capsys.readouterr().err


def test_where_the_report_cannot_be_written_is_said_before_the_work(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (site.parent / "file").write_text("")

    assert main([str(site), "--prove", "--report", str(site.parent / "file/proof.json")]) == 2

    said = capsys.readouterr().err
    assert "file" in said
    assert "the original" not in said
