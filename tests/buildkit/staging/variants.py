"""Builds variants of the verified image, good and bad releases, with build and verification records that allow them.

A variant is a real image that the engine runs. Its fault is a module of `faults/`, installed as sitecustomize.py, so
Python imports it before the service. No file of the service is changed, and mypy checks the names a fault replaces.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from checks.results import RESULTS_VERSION
from tests.support.migration import SECOND_MIGRATION
from tests.support.release_records import check_result

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["VARIANTS", "Variant", "build_variant", "revision_of"]

FAULTS = Path(__file__).parent / "faults"
LARGE_BYTES = 300_000_000
TINY_NLI = """
import shutil, torch
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification
torch.manual_seed(0)
DebertaV2ForSequenceClassification(DebertaV2Config(
    vocab_size=30522, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
    max_position_embeddings=512, relative_attention=True, position_buckets=64, norm_rel_ebd="layer_norm",
    share_att_key=True, pos_att_type=["p2c", "c2p"], position_biased_input=False, type_vocab_size=0,
    id2label={0: "contradiction", 1: "entailment", 2: "neutral"},
    label2id={"contradiction": 0, "entailment": 1, "neutral": 2},
)).save_pretrained("/tmp/tiny")
shutil.copy("/opt/models/all-MiniLM-L6-v2/tokenizer.json", "/tmp/tiny")
"""
"""Makes an entailment model with seeded random weights: its scores mean nothing, but never change."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One release.

    Attributes:
        description: how it differs from the verified image.
        fault: module of `faults/`; "" for none.
        migration: text of migration 0002; "" for none.
    """

    description: str
    fault: str = ""
    migration: str = ""


VARIANTS: Mapping[str, Variant] = {
    "first": Variant("no change"),
    "second": Variant("no change but its name"),
    "large": Variant("random bytes that take time to push"),
    "migrating": Variant("a migration that the previous code works with", "schema_0002", SECOND_MIGRATION),
    "unmigratable": Variant(
        "a migration that fails halfway",
        "schema_0002",
        SECOND_MIGRATION.replace("ADD COLUMN note text", "ADD COLUMN note x"),
    ),
    "breaking": Variant(
        "a migration that does not name the previous revision as compatible",
        "schema_0002",
        SECOND_MIGRATION.replace('compatible_with = ("0001",)\n', ""),
    ),
    "crashing": Variant("the server ends at its start", "crash"),
    "sick": Variant("never ready, except as a canary", "never_ready"),
    "wrong": Variant("ready, with wrong embeddings", "wrong_embeddings"),
}

_DOCKERFILE = """
FROM {base} AS tiny
USER 0:0
COPY tiny.py /tmp/tiny.py
RUN TMPDIR=/tmp python /tmp/tiny.py && python -m service models add tiny-nli --from /tmp/tiny --into /layer
FROM {base} AS random
USER 0:0
RUN mkdir /random && head -c {random_bytes} /dev/urandom >/random/{name}
FROM {base}
COPY --from=tiny /layer/tiny-nli /opt/models/tiny-nli
COPY --from=random /random /app/service
COPY app /app
"""


def build_variant(docker: Sequence[str], name: str, *, base: str, build_record: Path, folder: Path) -> Path:
    """Builds a variant of the image *base* and returns the folder with its image.json and verify.json.

    Args:
        docker: the docker command with its options.
        name: of the variant.
        base: a tag of the verified image.
        build_record: of the verified image.
        folder: gets a folder of the variant's name.
    """
    target = folder / name
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        context = Path(scratch)
        _write_context(context, name, base)
        metadata = context / "metadata.json"
        output = f"type=image,name=staging-variant:{name},compression=zstd,compression-level=1,oci-mediatypes=true"
        command = [*docker, "buildx", "build", "--quiet", "--provenance=false", "--metadata-file", str(metadata)]
        subprocess.run([*command, "--output", output, str(context)], check=True, capture_output=True)
        digest = json.loads(metadata.read_text())["containerimage.digest"]
    record = json.loads(build_record.read_text())
    (target / "image.json").write_text(json.dumps({**record, "digest": digest, "revision": revision_of(name)}))
    results = {"image": digest, "target": "api", "seconds": 0.0, "checks": [check_result("pass")]}
    (target / "verify.json").write_text(json.dumps({**results, "schema_version": RESULTS_VERSION}))
    return target


def revision_of(name: str) -> str:
    """Returns a git revision made from the variant's name; releases are named by its first digits."""
    return f"{len(name):02x}{name.encode().hex():0<38.38}"


def _write_context(context: Path, name: str, base: str) -> None:
    variant = VARIANTS[name]
    (context / "tiny.py").write_text(TINY_NLI)
    (context / "app" / "migrations" / "versions").mkdir(parents=True)
    if variant.fault:
        (context / "app" / "sitecustomize.py").write_text((FAULTS / f"{variant.fault}.py").read_text())
    if variant.migration:
        (context / "app" / "migrations" / "versions" / "0002_notes.py").write_text(variant.migration)
    random_bytes = LARGE_BYTES if name == "large" else 16
    (context / "Dockerfile").write_text(_DOCKERFILE.format(base=base, name=name, random_bytes=random_bytes))
