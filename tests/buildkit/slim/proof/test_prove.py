"""Proves a small tree with a fake workload; each test plants one difference that the proof must report."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from buildkit.slim.__main__ import main
from buildkit.slim.placeholders.kinds import removal_message
from buildkit.slim.proof import run_workload
from tests.support.elf import LibrarySpec, container, cubin
from tests.support.installed import install, snapshot

if TYPE_CHECKING:
    from pathlib import Path

# Answers like torch, from the GPU code in its library. `site/answers.json` has the planted differences.
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


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "workload.py").write_text(WORKLOAD)
    monkeypatch.setattr(run_workload, "WORKLOAD", tmp_path / "workload.py")
    root = tmp_path / "site-packages"
    library = LibrarySpec(fatbin=[container(cubin(80), cubin(90), cubin(100))])
    install(root, "torch", {"torch/lib/libtorch_cuda.so": library.build(), "torch/include/x.h": b""}, site=".")
    plant(root)
    return root


def plant(site: Path, **answers: object) -> None:
    (site / "answers.json").write_text(json.dumps(answers))


def run(site: Path, *options: str) -> tuple[int, dict[str, object]]:
    work = site.parent / "proofs/work"  # the proof makes both folders
    report = site.parent / "proofs/reports/proof.json"
    status = main([str(site), "--prove", "--work-dir", str(work), "--report", str(report), *options])
    assert list(work.iterdir()) == []
    return status, json.loads(report.read_text())


def test_without_gpu_succeeds_and_names_unverified_claims(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(site)

    status, proof = run(site)

    assert (status, proof["failures"], proof["is_verified_on_device"]) == (0, [], False)
    assert (proof["targets"], proof["negative_control"], proof["compared_libraries"]) == (["9.0"], None, 1)
    assert proof["start"] == {
        "before": {"import_seconds": 2.0, "host_bytes": 7},
        "after": {"import_seconds": 1.0, "host_bytes": 7},
    }
    output = capsys.readouterr().err
    assert "NOT VERIFIED on a device" in output
    assert all(claim in output for claim in ("driver loads the pruned", "the same bits", "negative control"))
    assert all(claim in output for claim in ("no nvJitLink", "no cuobjdump", "import: 2.00 s before, 1.00 s after"))
    assert len(proof["not_verified"]) == output.count("  not verified: ")  # type: ignore[arg-type] # JSON
    assert snapshot(site) == before
    assert run(site, "--require-gpu")[0] == 1


def test_with_gpu_negative_control_must_fail(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant(site, device="H200", capability="9.0")

    status, proof = run(site, "--require-gpu")

    assert (status, proof["failures"], proof["is_verified_on_device"]) == (0, [], True)
    assert proof["negative_control"] == "no kernel image is available for execution on the device"
    assert not any("no GPU" in claim for claim in proof["not_verified"])  # type: ignore[attr-defined] # JSON
    assert "verified on the device" in capsys.readouterr().err


@pytest.mark.usefixtures("gcc")
def test_with_gpu_lost_cases_are_not_compared(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant(site, device="H200", capability="9.0", is_lost=True)

    status, proof = run(site, "--profile", "inference", "--require-gpu")

    assert (status, proof["failures"]) == (0, [])
    assert "a rule removes a library that they need: fft (stub-cufft)" in capsys.readouterr().err
    cases: list[dict[str, object]] = proof["cases"]  # type: ignore[assignment] # JSON
    assert {case["before"] for case in cases if case["name"] == "has cudnn"} == {"False"}
    assert run(site, "--profile", "single")[0] == 1


@pytest.mark.usefixtures("gcc")
def test_stub_called_by_the_service_fails_the_proof(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant(site)
    status, proof = run(site, "--profile", "inference")
    assert (status, proof["placeholder_calls"]) == (0, [])
    assert "of the removed libraries, the service's own cases call: nothing" in capsys.readouterr().err
    call = f"cufftExecR2C was called, but {removal_message('libcufft.so.12', 'stub-cufft', 'FFT')}"
    plant(site, called=call)

    status, proof = run(site, "--profile", "inference")

    assert (status, proof["placeholder_calls"]) == (1, [call])
    assert proof["failures"] == [f"the service calls a library that the profile removes: {call}"]
    assert run(site, "--profile", "single")[1]["placeholder_calls"] is None


@pytest.mark.usefixtures("gcc")
def test_served_case_that_did_not_run_is_not_verified(site: Path) -> None:
    nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    plant(site, served={"embeddings": nothing, "encoder": "digest", "classifier": "OSError: no file"})

    not_verified = run(site, "--profile", "inference")[1]["not_verified"]

    failed = [claim for claim in not_verified if "did not run" in claim]  # type: ignore[attr-defined] # JSON
    assert [claim.partition(" did")[0] for claim in failed] == ["classifier", "embeddings"]


def test_negative_control_that_passes_fails_the_proof(site: Path) -> None:
    """If a tree for another GPU works, the workload did not use the pruned files."""
    plant(site, device="A100", capability="8.0")

    status, proof = run(site)

    assert status == 1
    assert any("negative control" in failure for failure in proof["failures"])  # type: ignore[attr-defined] # JSON


def test_changed_result_fails_the_proof(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant(site, is_changed=True)

    status, proof = run(site)

    assert status == 1
    assert proof["failures"] == ["matmul (LAZY): digest became other", "matmul (EAGER): digest became other"]
    assert "FAILED matmul (LAZY)" in capsys.readouterr().err


def test_unrepeatable_case_is_not_compared(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant(site, is_noisy=True)

    status, _ = run(site)

    assert status == 0
    assert "two runs of the original differ: matmul" in capsys.readouterr().err


def test_mapped_original_fails_the_proof(site: Path) -> None:
    plant(site, mapped=str(site / "torch/lib/libtorch_cuda.so"))

    status, proof = run(site)

    assert status == 1
    assert any("of the original was mapped" in failure for failure in proof["failures"])  # type: ignore[attr-defined] # JSON


def test_workload_failure_exits_with_3(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant(site, is_broken=True)

    assert main([str(site), "--prove", "--work-dir", str(site.parent)]) == 3
    assert "torch does not import" in capsys.readouterr().err


def test_unwritable_report_fails_before_the_proof(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (site.parent / "file").write_text("")

    assert main([str(site), "--prove", "--report", str(site.parent / "file/proof.json")]) == 3

    output = capsys.readouterr().err
    assert "file" in output
    assert "the original" not in output
