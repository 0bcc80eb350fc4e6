"""The aligned line of models that are rewritten for it: the naive one is of the models as they are, the other of folded ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families_more import CASES
from random_transforms import random_transform
from tiny import NLI, save_checkpoint

from evals.paths.barrier import barrier_key, measure_pair
from evals.paths.line import Curve
from evals.predict.logits import match_labels
from evals.tasks import TASKS
from evals.tasks.label_names import MatchedTask
from evals.tasks.task import Rows
from merge.alignment.rewrite import rewritten
from merge.checkpoints.model_set import ModelSet
from merge.checkpoints.open import open_checkpoint
from merge.recipe.recipe import Recipe, make_recipe
from merge.run.plan.heads import plan_heads
from merge.run.rebase import rebase
from merge.symmetry.architectures import spec_for
from merge.symmetry.canonical import fold_norms
from merge.symmetry.permutation import identity
from merge.symmetry.transform import Transform, apply_transform, folded_spec, restrict_transform

MNLI = TASKS["mnli"]
NAMES = dict(enumerate(NLI))
CONFIG = CASES["GPT2ForSequenceClassification"] | {
    "id2label": {str(k): name for k, name in NAMES.items()},
    "label2id": {name: k for k, name in NAMES.items()},
}
ROWS = Rows(
    tuple(
        (f"the doctor saw {x}", f"a {y} helped") for x in ("who", "the lawyer", "a river") for y in ("doctor", "lawyer")
    ),
    (0, 1, 2, 0, 1, 2),
    MNLI.labels,
    "made",
    "test",
    tuple("123456"),
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a GPT-2 classifier and itself, its norms folded and its residual stream rotated."""
    root = tmp_path_factory.mktemp("models")
    a = open_checkpoint(str(save_checkpoint(root / "a", CONFIG, seed=1)))
    folded = fold_norms(spec_for(a.config), a.config, a.state_dict())
    spec = folded_spec(spec_for(folded.config))
    shapes = {name: tuple(tensor.shape) for name, tensor in folded.tensors.items()}
    drawn = random_transform(spec, shapes, torch.Generator().manual_seed(0))
    turn = Transform(identity(spec, shapes), restrict_transform(drawn, ["residual"]).maps)
    moved = apply_transform(spec, turn, folded.tensors)
    save_checkpoint(root / "b", CONFIG, tensors={a.written_name(n): t for n, t in moved.items()})
    return root / "a", root / "b"


def line(recipe: Recipe, models: tuple[Path, Path], beside: Path) -> list[Curve]:
    """Return the curves as the command measures them."""
    pair = open_checkpoint(str(models[0])), open_checkpoint(str(models[1]))
    with rewritten(recipe.align, ModelSet(pair), beside) as ready:
        rebased = rebase(recipe.align, plan_heads(None, ready.models))
        columns = match_labels(MNLI, pair[0], None)
        return measure_pair(pair, ready.models, rebased, MatchedTask(MNLI, ROWS, columns), 3)[0]


def test_a_rotated_copy_has_no_barrier_once_its_stream_is_turned_back(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    """One function at both ends; the straight line between them leaves it, and the aligned one does not."""
    named = [str(folder) for folder in models]
    recipe = make_recipe({"models": named, "align": {"by": "weights", "residual": "rotation"}, "output": str(tmp_path)})
    naive, aligned = line(recipe, models, tmp_path / "x")
    assert naive.loss[0] == pytest.approx(naive.loss[-1], abs=1e-4)
    assert abs(naive.loss[1] - naive.loss[0]) > 1e-2
    assert aligned.loss == pytest.approx([naive.loss[0]] * 3, abs=1e-4)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".prepared")]


def test_what_is_applied_decides_what_a_result_is_stored_under(models: tuple[Path, Path], tmp_path: Path) -> None:
    """Without an alignment, with a transform of a file, and with other contents of it: three results."""
    pair = open_checkpoint(str(models[0])), open_checkpoint(str(models[1]))
    file = tmp_path / "t.safetensors"

    def key(align: dict[str, str]) -> str:
        recipe = make_recipe({"models": [str(m) for m in models], "align": align, "output": str(tmp_path)})
        return barrier_key(pair, MatchedTask(MNLI, ROWS, (0, 1, 2)), recipe.align, 0, 5)

    keys = [key({})]
    for content in (b"one", b"two"):
        file.write_bytes(content)
        keys.append(key({"apply": str(file)}))
    assert len(set(keys)) == 3
    file.rename(tmp_path / "elsewhere.safetensors")
    assert key({"apply": str(tmp_path / "elsewhere.safetensors")}) == keys[2]
