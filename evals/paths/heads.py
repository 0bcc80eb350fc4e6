"""What becomes of the classifier head on a line: interpolated, kept from a, or its last layer re-fitted at every point.

Heads of independent fine-tunes start at random, so the line between two of them says much of the heads and little of the encoder.
With a's head kept, or with the last layer re-fitted to what the encoder gives, the barrier is that of the encoder.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from evals.tasks.label_names import MatchedTask
from merge.checkpoints.checkpoint import Checkpoint
from merge.errors import TaskError
from merge.run.plan.classes import label_tensors

# What --head says -> how the curve is named.
HEADS = {"both": "", "A": "head of a", "refit": "head re-fitted"}
# Each row is predicted by a head that was fitted to the other folds.
FOLDS = 5


def head_tensors(checkpoint: Checkpoint) -> frozenset[str]:
    """Return the names, as transformers writes them, of the tensors outside the base model: those that a fine-tune starts anew.

    Raises:
        TaskError: the class has no base model that is separate from its head.
    """
    prefix = f"{checkpoint.structure.prefix}."
    inside = {name for name in checkpoint.tensors if name.startswith(prefix)}
    if not inside or len(inside) == len(checkpoint.tensors):
        raise TaskError(
            f"{checkpoint.source}: {checkpoint.architecture} has no head that is separate from its base model. "
            "Leave out --head."
        )
    return frozenset(checkpoint.written_name(name) for name in checkpoint.tensors.keys() - inside)


def last_layer_tensors(checkpoint: Checkpoint) -> frozenset[str]:
    """Return the names, as transformers writes them, of the weights of the layer that gives the logits.

    Raises:
        TaskError: the tensors with a row for each class are not those of one layer.
    """
    names = frozenset(map(checkpoint.written_name, label_tensors(checkpoint)))
    if len({name.rpartition(".")[0] for name in names}) != 1:
        raise TaskError(
            f"{checkpoint.source}: {checkpoint.architecture} has no single layer that gives its logits (found "
            f"{', '.join(sorted(names)) or 'none'}), so it cannot be re-fitted. Use --head both or --head A."
        )
    return names


@contextmanager
def last_layer_inputs(model: Any, checkpoint: Checkpoint) -> Iterator[None]:
    """Let a model give the inputs of its last layer, which are the features of a linear head, in place of its logits.

    Raises:
        TaskError: the last layer is not linear.
    """
    path = next(iter(last_layer_tensors(checkpoint))).rpartition(".")[0]
    layer = model.get_submodule(path)
    if not isinstance(layer, torch.nn.Linear):
        raise TaskError(
            f"{checkpoint.source}: its last layer {path} is a {type(layer).__name__}, not a linear one, so it cannot be "
            "re-fitted. Use --head both or --head A."
        )
    hook = layer.register_forward_hook(lambda _module, inputs, _output: inputs[0])
    try:
        yield
    finally:
        hook.remove()


def refitted_logits(
    features: Float[Tensor, "rows features"], matched: MatchedTask, seed: int
) -> tuple[Float[Tensor, "rows labels"], Tensor]:
    """Return (log-probabilities of the task's classes, predicted class) by linear heads in closed form.

    The head is linear discriminant analysis, whose logits are linear in the features; the covariance is shrunk as Ledoit and
    Wolf do. Every row is predicted by the head of the other folds, so no row is predicted by a head that has seen it.

    Args:
        seed: of the folds, which hold the classes in equal shares.
    Raises:
        TaskError: a class has fewer than two rows.
    Source: Fisher 1936; Ledoit and Wolf 2004, J. Multivariate Analysis 88, 365-411.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    gold = np.asarray(matched.rows.gold)
    check_refit(matched)
    x = features.double().numpy()
    folds = _folds(gold, seed)
    logits = np.empty((len(x), len(matched.task.labels)))
    for fold in range(FOLDS):
        held = folds == fold
        if held.any():
            head = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(x[~held], gold[~held])
            logits[held] = head.predict_log_proba(x[held])
    answers = torch.from_numpy(logits)
    return answers, answers.argmax(1)


def check_refit(matched: MatchedTask) -> None:
    """Stop where a class has too few rows to fit a head to and to predict.

    Raises:
        TaskError: names the class; or the task has none.
    """
    if matched.task.regression:
        raise TaskError(
            f"--head refit fits a head to classes, and {matched.task.name} has none. Use --head both or --head A."
        )
    gold = list(matched.rows.gold)
    for k, label in enumerate(matched.task.labels):
        if gold.count(k) < 2:
            raise TaskError(
                f"--head refit on {matched.task.name}: class {label} has {gold.count(k)} of {len(gold):,} rows; fitting and "
                "predicting take at least 2. Give more rows, or another --head."
            )


def _folds(gold: Any, seed: int) -> Any:
    """Return the fold of each row; every class is spread over the folds."""
    generator, folds = np.random.default_rng(seed), np.empty(len(gold), dtype=np.int64)
    for label in np.unique(gold):
        rows = generator.permutation(np.flatnonzero(gold == label))
        folds[rows] = np.arange(len(rows)) % FOLDS
    return folds
