from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

from buildkit.slim.proof.result import CaseResult, Proof, proof_summary, save_proof

if TYPE_CHECKING:
    from pathlib import Path

MATMUL = CaseResult("matmul", "LAZY", before="aa", after="aa", is_repeatable=True)
PROOF = Proof(
    date="2026-11-27",
    versions={"torch": "2.13.0"},
    device=None,
    targets=("9.0",),
    profile="single",
    bytes_before=2_000_000,
    bytes_after=1_000_000,
    compared_libraries=1,
    loaded_libraries=2,
    linked_containers=3,
    listed_libraries=4,
    cases=(MATMUL,),
    negative_control=None,
    start={"before": {"import_seconds": 2.0}, "after": {"import_seconds": 1.0}},
    placeholder_calls=None,
    is_verified_on_device=False,
    not_verified=("no GPU: start-up",),
    failures=(),
)


def test_case_is_expected_unless_a_comparable_result_differs() -> None:
    changed = dataclasses.replace(MATMUL, after="bb")

    assert MATMUL.is_expected
    assert not changed.is_expected
    assert dataclasses.replace(changed, is_repeatable=False).is_expected
    assert dataclasses.replace(changed, lost_by="stub-cufft").is_expected


def test_proof_summary_without_gpu_is_not_verified() -> None:
    assert proof_summary(PROOF) == (
        "proof of single for 9.0 on no GPU, 2026-11-27\n"
        "  2.0 MB before, 1.0 MB after\n"
        "  1 pruned libraries equal by address, 2 changed ones load\n"
        "  3 containers link alike, 4 libraries are listed alike\n"
        "  1 results, 1 of them bit-identical\n"
        "  import: 2.00 s before, 1.00 s after\n"
        "  not verified: no GPU: start-up\n"
        "  NOT VERIFIED on a device\n"
    )


def test_proof_summary_failure_is_failed() -> None:
    failed = dataclasses.replace(PROOF, device="H100", failures=("matmul: aa became bb",))

    assert proof_summary(failed).endswith("  FAILED matmul: aa became bb\n  FAILED\n")


def test_save_proof_writes_all_fields(tmp_path: Path) -> None:
    save_proof(PROOF, tmp_path / "proof.json")

    saved = json.loads((tmp_path / "proof.json").read_text())
    assert saved.keys() == {field.name for field in dataclasses.fields(PROOF)}
    assert (saved["schema_version"], saved["cases"][0]["name"]) == (2, "matmul")
