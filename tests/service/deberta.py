"""Makes classifiers with DeBERTa-v3's architecture and seeded random weights, of any size."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["save_classifier"]


def save_classifier(folder: Path, tokenizer: Path, **shape: int) -> None:
    """Writes a three-class classifier with the file `tokenizer` to `folder`; its outputs are in an unusual order.

    `shape` are sizes of its configuration: vocabulary, layers, heads, widths, position buckets.
    """
    import torch
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

    torch.manual_seed(0)
    configuration = DebertaV2Config(
        **shape,
        max_position_embeddings=512,
        relative_attention=True,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        type_vocab_size=0,
        id2label={0: "contradiction", 1: "entailment", 2: "neutral"},
        label2id={"contradiction": 0, "entailment": 1, "neutral": 2},
    )
    DebertaV2ForSequenceClassification(configuration).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
