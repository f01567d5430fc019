"""Releases of our own making, good and bad: the verified image with a few files changed, and records that say so.

They are real images that the engine runs; only their verification is ours, since a bad release must get past it.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from checks.results import RESULTS_VERSION

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["VARIANTS", "Variant", "make"]

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
"""A classifier with seeded weights: it judges nothing well, and the same pair always the same."""

_MIGRATION = '''"""Adds a place for notes on claims."""

from alembic import op

revision = "0002"
down_revision = "0001"
compatible_with = ("0001",)
data_loss = {"claims": "SELECT count(*) FROM claims WHERE note IS NOT NULL"}


def upgrade() -> None:
    op.execute("ALTER TABLE claims ADD COLUMN note text")


def downgrade() -> None:
    op.execute("ALTER TABLE claims DROP COLUMN note")
'''
_TO_0002 = ("service/database.py", 'SCHEMA_REVISION: Final = "0001"', 'SCHEMA_REVISION: Final = "0002"')


_SICK = """message="running") if __import__("os").environ["TRUTHGRAPH_TASK_WORKERS"] == "0" else \\
            Condition("process", Level.DEGRADED, is_ready=False, message="sick")"""


@dataclass(frozen=True, slots=True)
class Variant:
    """A release: files that are added (path below /app -> text), and texts that are replaced (path, old, new)."""

    why: str
    files: Mapping[str, str]
    changes: Sequence[tuple[str, str, str]]


LARGE_BYTES = 300_000_000
VARIANTS: Mapping[str, Variant] = {
    "first": Variant("as built, with a tiny entailment model", {}, ()),
    "second": Variant("a change of code alone", {"service/second.txt": "second"}, ()),
    "migrating": Variant(
        "a migration that serves the code before, and can be taken back",
        {"migrations/versions/0002_notes.py": _MIGRATION},
        (_TO_0002,),
    ),
    "unmigratable": Variant(
        "a migration that fails half way",
        {"migrations/versions/0002_notes.py": _MIGRATION.replace("ADD COLUMN note text", "ADD COLUMN note nonsense")},
        (_TO_0002,),
    ),
    "breaking": Variant(
        "a migration that does not say that it serves the code before",
        {"migrations/versions/0002_notes.py": _MIGRATION.replace('compatible_with = ("0001",)\n', "")},
        (_TO_0002,),
    ),
    "crashing": Variant(
        "ends at once",
        {},
        (("service/server.py", "    configure_logging(settings.log_level)", "    raise SystemExit(7)"),),
    ),
    "sick": Variant(
        "runs well until it gets traffic's settings, then is never ready",
        {},
        (
            (
                "service/health.py",
                'message="running")',
                _SICK,
            ),
        ),
    ),
    "wrong": Variant(
        "healthy, with another vector for each text",
        {},
        (("service/inference/types.py", 'array("f", self.data).tolist()', 'array("f", self.data).tolist()[::-1]'),),
    ),
}


def make(docker: Sequence[str], name: str, *, base: str, build_record: Path, folder: Path) -> Path:
    """Builds the variant *name* of the image *base* and writes image.json and verify.json into *folder*/*name*.

    `large` is `first` with random bytes, which take their time to be sent.
    """
    variant = VARIANTS.get(name, VARIANTS["first"])
    target = folder / name
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        context = Path(scratch)
        (context / "tiny.py").write_text(TINY_NLI)
        (context / "files.json").write_text(
            json.dumps({"files": dict(variant.files), "changes": list(variant.changes)})
        )
        (context / "apply.py").write_text(_APPLY)
        large = f"head -c {LARGE_BYTES} /dev/urandom >/changed/service/large" if name == "large" else ":"
        (context / "Dockerfile").write_text(_DOCKERFILE.format(base=base, large=large))
        metadata = context / "metadata.json"
        output = f"type=image,name=staging-variant:{name},compression=zstd,compression-level=1,oci-mediatypes=true"
        command = [*docker, "buildx", "build", "--quiet", "--provenance=false", "--metadata-file", str(metadata)]
        subprocess.run([*command, "--output", output, str(context)], check=True, capture_output=True)
        digest = json.loads(metadata.read_text())["containerimage.digest"]
    record = json.loads(build_record.read_text())
    revision = f"{len(name):02x}{name.encode().hex():0<38.38}"
    (target / "image.json").write_text(json.dumps({**record, "digest": digest, "revision": revision}))
    check = {"name": "made", "title": "Made.", "group": "made", "tier": "static", "outcome": "pass", "seconds": 0.0}
    results = {"image": digest, "target": "api", "seconds": 0.0, "checks": [check], "schema_version": RESULTS_VERSION}
    (target / "verify.json").write_text(json.dumps(results))
    return target


_APPLY = """
import json, pathlib, py_compile
given = json.load(open("/tmp/files.json"))
app = pathlib.Path("/app")
for name, text in given["files"].items():
    (app / name).write_text(text)
for name, old, new in given["changes"]:
    path = app / name
    text = path.read_text()
    assert old in text, (name, old)
    path.write_text(text.replace(old, new))
    # Bytecode is not checked against the source in this image: it must be made anew.
    unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(path), dfile=f"/app/{name}", doraise=True, invalidation_mode=unchecked)
"""

_DOCKERFILE = """
FROM {base} AS tiny
USER 0:0
COPY tiny.py /tmp/tiny.py
RUN TMPDIR=/tmp python /tmp/tiny.py && python -m service models add tiny-nli --from /tmp/tiny --into /layer
FROM {base} AS changed
USER 0:0
COPY files.json apply.py /tmp/
RUN cp -r /app /changed && sed -i s,/app,/changed, /tmp/apply.py && python /tmp/apply.py && {large}
FROM {base}
COPY --from=tiny /layer/tiny-nli /opt/models/tiny-nli
COPY --from=changed /changed /app
"""
