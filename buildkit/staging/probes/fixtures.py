"""Sample claims with sentences about them, written for this project; smoke tests and load send them.

A search for a claim must find one of its own sentences before those of the other claims.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from buildkit.staging.probes.client import RequestTimedOut

if TYPE_CHECKING:
    from buildkit.staging.probes.client import Client

__all__ = ["CLAIMS", "LONG_TEXT", "SAME_COSINE", "SENTENCES", "SOURCE", "cosine", "store_sentences"]

SAME_COSINE = 0.9999
"""The least cosine of two embeddings of one text by one model: other texts in the batch change it by some 1e-7
(padding), another model by much more."""
SOURCE = "https://sample.test/"
"""The source address of the stored sentences; `.test` is reserved for such use (RFC 6761)."""

CLAIMS: dict[str, tuple[str, ...]] = {
    "Coral reefs turn white when the sea is too warm for them.": (
        "Corals that are under heat stress lose the algae that colour them, which is known as bleaching.",
        "After the warm summer of 2016 large parts of the northern reef were bleached.",
    ),
    "Glaciers in the Alps have lost much of their ice since 1850.": (
        "Alpine glaciers have shrunk to less than half of the volume that they had in the middle of the 19th century.",
        "The tongue of the Aletsch glacier has gone back by more than three kilometres.",
    ),
    "Cows and rice fields give off methane.": (
        "Microbes in flooded paddies and in the stomachs of cattle make methane, a strong greenhouse gas.",
        "Agriculture is responsible for about forty per cent of the methane that people cause.",
    ),
    "Electric cars need no oil change.": (
        "A battery-driven car has no combustion engine, and so no engine oil that has to be renewed.",
        "The motor of an electric vehicle has few moving parts, which makes its maintenance cheap.",
    ),
    "Venus is hotter than Mercury although it is farther from the sun.": (
        "The dense carbon dioxide atmosphere of Venus keeps its surface at about 460 degrees.",
        "Mercury has no air to hold the heat, so its nights are very cold.",
    ),
    "Honey bees tell one another where flowers are by dancing.": (
        "In the hive a returning forager waggles along a line whose angle points to the food.",
        "Karl von Frisch described the language of the bees and was given a Nobel prize for it.",
    ),
    "The Great Wall of China can be seen from the moon.": (
        "From the moon not a single building on Earth is visible to the naked eye, the long wall included.",
        "Astronauts in low orbit find the wall hard to make out, for it is narrow and has the colour of the ground.",
    ),
    "Bread rises because yeast makes gas.": (
        "Yeast turns sugar in the dough into carbon dioxide, whose bubbles lift the loaf.",
        "Sourdough is raised by wild yeasts and lactic bacteria.",
    ),
    "Antibiotics help against the common cold.": (
        "A cold is caused by viruses, on which antibiotics have no effect.",
        "Doctors who prescribe antibiotics without need help resistant bacteria to spread.",
    ),
    "Tides are caused by the pull of the moon and the sun.": (
        "The moon's gravity raises the water of the oceans on two sides of the Earth, hence two high tides a day.",
        "At new and full moon the sun's pull adds to the moon's, which makes spring tides.",
    ),
    "Copper conducts electricity better than iron.": (
        "The resistivity of copper is about a sixth of that of iron, which is why cables are made of it.",
        "Silver alone conducts electric current a little better than copper among the metals.",
    ),
    "Penguins live at the North Pole.": (
        "Wild penguins are birds of the southern hemisphere; there are none in the Arctic.",
        "Emperor penguins breed on the sea ice of Antarctica in winter.",
    ),
}

SENTENCES: tuple[str, ...] = tuple(sentence for sentences in CLAIMS.values() for sentence in sentences)

LONG_TEXT = " ".join(SENTENCES[:6])
"""Below the model's limit of 256 tokens, and long enough that a short text in the same batch is padded."""


def cosine(left: list[float], right: list[float]) -> float:
    """Returns the cosine of two vectors; 0 if one of them is zero."""
    dot = math.fsum(a * b for a, b in zip(left, right, strict=True))
    norms = math.sqrt(math.fsum(a * a for a in left)) * math.sqrt(math.fsum(b * b for b in right))
    return dot / norms if norms else 0.0


def store_sentences(client: Client) -> None:
    """Stores the sentences as evidence of the client's tenant; storing them twice is harmless.

    Raises:
        RequestTimedOut: the API did not store one.
    """
    for number, sentence in enumerate(SENTENCES):
        evidence = {"content": sentence, "source_url": f"{SOURCE}{number}", "source_type": "sample"}
        response = client.send("POST", "/api/v1/evidence", evidence)
        if response.status not in {200, 201}:
            reason = f"{response.status} {response.body[:200]!r}"
            raise RequestTimedOut("POST /api/v1/evidence", reason, response.retries)
