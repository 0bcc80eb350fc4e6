"""What several files of tests evaluate: two models, and rows of two tasks."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from drawn_once import all_drawn
from tiny import NLI, save_checkpoint, sentence

__all__ = ["all_drawn", "zoo"]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of two models and rows of two tasks."""
    root, generator = tmp_path_factory.mktemp("zoo"), random.Random(0)
    for seed, name in enumerate("ab"):
        save_checkpoint(root / name, seed=seed)
    labels = {"mnli/validation_matched.jsonl": NLI, "rte/validation.jsonl": ("entailment", "not_entailment")}
    for name, known in labels.items():
        (root / "data" / name).parent.mkdir(parents=True)
        rows = [
            {
                "sentence1": sentence(generator, 12),
                "sentence2": sentence(generator, 8),
                "label": generator.choice(known),
            }
            for _ in range(150)
        ]
        (root / "data" / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return root
