"""Train small models from a seed, each once: a finished model is read from its folder, an unfinished one is trained anew.

On one thread, so that the same seed gives the same bytes on the same machine and versions.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merge.checkpoints.transformers_model import model_class, model_config, quiet
from zoo.labelled_logits import labelled_logits

RECORD = "training.json"
RECENT = 50  # steps over which the training loss is averaged

# The generator of a run -> its labelled batches, without end.
Batches = Callable[[torch.Generator], Iterator[Mapping[str, Tensor]]]


@dataclass(frozen=True)
class Training:
    """The settings of a training run: AdamW, a linear warm-up, then half a cosine down to a thousandth of the rate."""

    steps: int
    rate: float = 2e-3
    warm_up: int = 150
    decay: float = 0.05

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step."""
        return self.rate * (min(1, (step + 1) / self.warm_up) * (1 + math.cos(math.pi * step / self.steps)) / 2 + 1e-3)


@dataclass(frozen=True)
class Trained:
    """A trained model: its folder, the mean loss of its last steps, and the CPU seconds of training."""

    folder: Path
    loss: float
    seconds: float


def trained(
    folder: Path,
    config: Mapping[str, Any],
    training: Training,
    seed: int,
    batches: Batches,
    start: Path | None = None,
    tokenizer: Any = None,
) -> Trained:
    """Return the model of this folder, trained if the folder does not hold it yet.

    Args:
        config: config.json of the model.
        seed: of the initial weights (of those a start lacks) and of the order of batches.
        start: a folder of initial weights; random weights if None.
        tokenizer: saved beside the model.
    Raises:
        SystemExit: the folder holds a model that was trained with other settings.
    """
    wanted = {
        "config": dict(config),
        "training": asdict(training),
        "seed": seed,
        "start": start.name if start else None,
    }
    wanted = json.loads(json.dumps(wanted))
    if (folder / RECORD).is_file():
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        other = [key for key in wanted if record[key] != wanted[key]]
        if other:
            differs = f"{other[0]} {record[other[0]]}, where {wanted[other[0]]} is asked for"
            raise SystemExit(f"{folder} holds a model that was trained with {differs}. Use another --folder.")
        return Trained(folder, record["loss"], record["seconds"])
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = _initial_model(config, start)
    started = time.process_time()
    loss = _train(model, training, batches(torch.Generator().manual_seed(7777 + seed)))
    seconds = time.process_time() - started
    with quiet():
        model.save_pretrained(unfinished)
    if tokenizer is not None:
        tokenizer.save_pretrained(unfinished)
    record = wanted | {"loss": loss, "seconds": seconds}
    (unfinished / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
    unfinished.rename(folder)
    return Trained(folder, loss, seconds)


def _initial_model(config: Mapping[str, Any], start: Path | None) -> Any:
    if start is None:
        return model_class(config)(model_config(config))
    with quiet():
        return model_class(config).from_pretrained(start, config=model_config(config))


def _train(model: Any, training: Training, batches: Iterator[Mapping[str, Tensor]]) -> float:
    """Train the model in place and return the mean loss of its last steps."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=training.decay)
    losses = []
    for step in range(training.steps):
        for group in optimizer.param_groups:
            group["lr"] = training.rate_at(step)
        loss = torch.nn.functional.cross_entropy(*labelled_logits(model, next(batches)))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[-RECENT:]) / len(losses[-RECENT:])
