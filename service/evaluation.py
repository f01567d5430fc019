"""Evaluates retrieval against labelled sentences: nDCG@10 and recall@10 of the three search modes."""

import asyncio
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from service.ingestor import EvidenceIngestor
from service.retrieval import Retriever
from service.schemas import NewEvidenceItem
from service.settings import Settings
from service.standalone import open_evidence
from service.store.evidence import SearchMode

__all__ = ["Judgement", "JudgementsError", "Quality", "evaluate", "ndcg", "read_judgements", "recall"]

_DEPTH: Final = 10
_BATCH: Final = 64
_MODES: Final[tuple[SearchMode, ...]] = ("vector", "keyword", "hybrid")


class JudgementsError(ValueError):
    """A file that has no judgements: the `problem` is in `line` of `file`."""

    def __init__(self, file: Path, line: int, problem: str) -> None:
        super().__init__(f"{file}, line {line}: {problem}")
        self.file = file
        self.line = line
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Judgement:
    """A claim, and the sentences that annotators labelled as supporting or refuting it."""

    claim: str
    relevant: frozenset[str]


@dataclass(frozen=True, slots=True)
class Quality:
    """Quality of one search mode: means over all claims that have relevant sentences."""

    mode: str
    claims: int
    sentences: int
    ndcg_at_10: float
    recall_at_10: float


def ndcg(found: Sequence[str], relevant: frozenset[str]) -> float:
    """Returns the normalized discounted cumulative gain at 10, with gains of 0 and 1 (Järvelin and Kekäläinen 2002)."""
    gain = sum(1 / math.log2(rank + 1) for rank, each in enumerate(found[:_DEPTH], start=1) if each in relevant)
    best = sum(1 / math.log2(rank + 1) for rank in range(1, min(len(relevant), _DEPTH) + 1))
    return gain / best


def recall(found: Sequence[str], relevant: frozenset[str]) -> float:
    """Returns the fraction of the relevant sentences that are among the first 10 found."""
    return len(relevant.intersection(found[:_DEPTH])) / len(relevant)


def read_judgements(file: Path) -> tuple[list[Judgement], list[str]]:
    """Reads JSON lines in CLIMATE-FEVER's format: the claims with relevant sentences, and every distinct sentence.

    Raises `JudgementsError` for a line in another format, or if no claim has a relevant sentence.
    """
    judgements: list[Judgement] = []
    sentences: dict[str, None] = {}
    number = 0
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entry = json.loads(line)
            claim = str(entry["claim"])
            pieces = [(str(piece["evidence"]), piece["evidence_label"]) for piece in entry["evidences"]]
        except (ValueError, KeyError, TypeError) as error:
            problem = "expected {claim, evidences: [{evidence, evidence_label}]}"
            raise JudgementsError(file, number, f"{problem} ({type(error).__name__}: {error})") from error
        sentences |= dict.fromkeys(sentence for sentence, _ in pieces)
        if relevant := frozenset(sentence for sentence, label in pieces if label in {"SUPPORTS", "REFUTES"}):
            judgements.append(Judgement(claim, relevant))
    if not judgements:
        raise JudgementsError(file, number, "no claim has evidence that is labelled SUPPORTS or REFUTES")
    return judgements, list(sentences)


def evaluate(settings: Settings, file: Path, log: Callable[[str], None]) -> list[Quality]:
    """Stores every sentence of `file` as evidence, searches for each claim in each mode, and returns the qualities.

    Calls `log` with progress. Raises `JudgementsError`, and `ModelUnavailableError` without an embedding model.
    """
    judgements, sentences = read_judgements(file)
    # One tenant for each file content, so that a search does not find the sentences of another file.
    tenant = f"evaluation-{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}"
    return asyncio.run(_evaluate(settings, tenant, judgements, sentences, log))


async def _evaluate(
    settings: Settings,
    tenant: str,
    judgements: Sequence[Judgement],
    sentences: Sequence[str],
    log: Callable[[str], None],
) -> list[Quality]:
    async with open_evidence(settings, timeout_seconds=60.0) as (evidence, engine):
        ingestor, retriever = EvidenceIngestor(evidence, engine), Retriever(evidence, engine)
        for start in range(0, len(sentences), _BATCH):
            pieces = [NewEvidenceItem(sentence) for sentence in sentences[start : start + _BATCH] if sentence]
            await ingestor.add(tenant, pieces, truncate=True)
            log(f"embedding sentences: {min(start + _BATCH, len(sentences))} of {len(sentences)}")
        qualities = []
        for mode in _MODES:
            ndcgs, recalls = [], []
            for number, judgement in enumerate(judgements, start=1):
                if number % _BATCH == 0 or number == len(judgements):
                    log(f"searching, mode {mode}: {number} of {len(judgements)} claims")
                hits = await retriever.search(tenant, judgement.claim, mode=mode, limit=_DEPTH)
                found = [hit.content for hit in hits]
                ndcgs.append(ndcg(found, judgement.relevant))
                recalls.append(recall(found, judgement.relevant))
            means = (round(sum(values) / len(values), 4) for values in (ndcgs, recalls))
            qualities.append(Quality(mode, len(judgements), len(sentences), *means))
        return qualities
