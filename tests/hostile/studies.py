"""What studies, edits and averages of training runs read, beside the world's models and rows."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest

PLAN = "A[0], mean(0.7*A0, 0.3*B0), zero(A[0]), A[0]-attention\n"
LAYERS = """models:
  A: a
  B: b
plan: A[0], mean(A0, B0)
output: out
"""
SLICES = """models: [a, b]
method: slerp
settings: {lam: 0.3}
slices:
  - merge(A[0], B[0])
  - layers: A[0]
  - layers: mean(0.5*A0, 0.5*B0)
    method: linear
output: out
"""
STEPS = (10, 20, 30)
TASK = ("--task", "task.yaml", "--data", "rows.jsonl")
TEXT = ("--text", "texts.txt", "--samples", "10")
TRAIN = ("--train", "rows.jsonl", "--train-steps", "3")
QUIET = ("-q", "--no-cache")

FEATURES = ("evaluate-models", "features", "a", "b", *QUIET, "--site", "layer 0 output")
SIMILARITY = ("evaluate-models", "similarity", "a", "b", *QUIET, "--measure", "cka")
LESION = ("evaluate-models", "lesion", "a", *QUIET, "--only", "layers", "--draws", "1")
LINEARITY = ("evaluate-models", "linearity", "a", *QUIET, "--only", "swaps,components")
STITCH = ("evaluate-models", "stitch", "a", "b", *QUIET, "--no-line", "--map", "scale")
PLANE = ("evaluate-models", "plane", "a", "b", "base", *QUIET, *TASK, "--points", "3", "--levels", "0")
RUN_PLANE = ("evaluate-models", "plane", "run", *PLANE[5:])
CURVE = ("evaluate-models", "curve", "a", "b", *QUIET, *TASK, *TRAIN, "--points", "3")
SIMPLEX = ("evaluate-models", "simplex", "a", *QUIET, *TASK, *TRAIN, "--vertices", "1", "--samples", "1")
MONOTONIC = ("evaluate-models", "monotonic", "base", "a", *QUIET, *TASK, "--points", "3", "--gauss-rows", "0")
RUN_MONOTONIC = ("evaluate-models", "monotonic", "b", "run", *MONOTONIC[4:])
ON_TEXT = tuple((*words, *TEXT) for words in (FEATURES, SIMILARITY, LESION, LINEARITY, STITCH))
ON_ROWS = ((*FEATURES, *TASK), (*LESION, *TASK), PLANE, CURVE, SIMPLEX, MONOTONIC)
# A folder for each kind of study, so that a command draws the page of one.
KEPT = tuple((*words, "-o", f"studies/{words[1]}") for words in (*ON_TEXT, *ON_ROWS[2:]))
GOES_ON = ("curve", "simplex")
OF_A_POINT = ("surface.json", "config.json", "model.safetensors")
BASINS = ("evaluate-models", "basins", "a", "b", "base", "-q", *TASK, "--processes", "1", "-o", "basins")
PREPARED = (*KEPT, BASINS)
STOPPED = tuple((*words[:-1], f"{words[-1]}-stopped") for words in KEPT if words[1] in GOES_ON)


def add_studies(world: Path) -> None:
    """Write plans, recipes of layers, lists of neurons and a training run into the world."""
    for name, text in (("plan.txt", PLAN), ("layers.yaml", LAYERS), ("slices.yaml", SLICES)):
        (world / name).write_text(text, encoding="utf-8")
    words = ("doctor", "lawyer", "river", "near", "quietly", "who")
    lines = [f"the {first} saw a {second} .\n" for first in words for second in words[:2]]
    (world / "texts.txt").write_text("".join(lines), encoding="utf-8")
    (world / "few.txt").write_text("the doctor saw .\n", encoding="utf-8")
    (world / "neurons.txt").write_text("0:1,3\n0:5-7\n", encoding="utf-8")
    plan = {"layers": [{"from": [{"model": 0, "layer": 0}]}, _mean(), {"from": [{"model": "B", "layer": 0}]}]}
    (world / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    for name, step in zip(("base", "a", "b"), STEPS, strict=True):
        folder = world / "run" / f"checkpoint-{step}"
        shutil.copytree(world / name, folder)
        state = {"global_step": step, "epoch": step / 10, "log_history": [{"loss": 1.5, "step": step}]}
        (folder / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")


def _mean() -> dict[str, object]:
    return {"from": [{"model": 0, "layer": 0}, {"model": 1, "layer": 0}], "made": "mean", "weights": [0.5, 0.5]}


def interrupted(steps: int) -> pytest.MonkeyPatch:
    """Return a patch under which each training is interrupted after some steps."""
    from evals.paths.surface import training

    real, left = training._loss, [steps]

    def loss(*args: object) -> object:
        left[0] -= 1
        if left[0] < 0:
            left[0] = steps
            raise KeyboardInterrupt
        return real(*args)

    patch = pytest.MonkeyPatch()
    patch.setattr(training, "_loss", loss)
    return patch


def undrawn() -> pytest.MonkeyPatch:
    """Return a patch under which figures are made and not drawn, which takes a second each."""
    from matplotlib.figure import Figure

    def written(_figure: Figure, file: io.BytesIO, **_options: object) -> None:
        file.write(b'<svg width="10pt" height="10pt"></svg>')

    patch = pytest.MonkeyPatch()
    patch.setattr(Figure, "savefig", written)
    return patch
