"""Lines with every head and on several data sets: each point is a model averaged by hand, whatever else is measured beside it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny import WORDS, bert_config, save_checkpoint
from torch import Tensor

from evals.paths.heads import refitted_logits
from evals.paths.pair_lines import Line, LinePlan, measure_lines
from evals.paths.summaries import SOURCES
from evals.predict.predictor import Predictor
from evals.tasks import TASKS
from evals.tasks.label_names import MatchedTask
from evals.tasks.task import Rows
from merge.checkpoints.model_set import ModelSet
from merge.checkpoints.open import open_checkpoint
from merge.errors import TaskError
from merge.recipe.recipe import make_recipe
from merge.run.plan.heads import plan_heads
from merge.run.rebase import rebase

MNLI = TASKS["mnli"]
HEAD = ("classifier.weight", "classifier.bias")


def matched(count: int, start: int = 0) -> MatchedTask:
    nouns = WORDS[:11]
    texts = tuple(
        (f"the {nouns[k % 11]} {nouns[(3 * k + 1) % 11]} a lawyer", f"a {nouns[(5 * k + 2) % 11]} helped")
        for k in range(start, start + count)
    )
    rows = Rows(texts, tuple(k % 3 for k in range(count)), MNLI.labels, "made", "test", tuple(map(str, range(count))))
    return MatchedTask(MNLI, rows, (0, 1, 2))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("models")
    return save_checkpoint(root / "a", seed=1), save_checkpoint(root / "b", seed=2)


def lines(models: tuple[Path, Path], sets: list[MatchedTask], plan: LinePlan) -> list[list[Line]]:
    pair = open_checkpoint(str(models[0])), open_checkpoint(str(models[1]))
    recipe = make_recipe({"models": [str(m) for m in models], "output": "out"})
    rebased = rebase(recipe.align, plan_heads(None, ModelSet(pair)))
    return measure_lines(pair, ModelSet(pair), rebased, sets, plan)[0]


def weights(models: tuple[Path, Path]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    a, b = (load_file(folder / "model.safetensors") for folder in models)
    return a, b


def by_hand(
    folder: Path, tensors: dict[str, Tensor], of: MatchedTask, features: bool = False, logits: bool = False
) -> Any:
    """Return the mean loss, or the inputs of the classifier, or its logits, by transformers alone, one row at a time."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(str(folder)).eval()
    model.load_state_dict(tensors)
    with torch.no_grad():
        batches = [tokenizer(*texts, return_tensors="pt") for texts in of.rows.texts]
        if features:
            return torch.cat([model.bert(**batch).pooler_output for batch in batches])
        found = torch.cat([model(**batch).logits for batch in batches])
    return found if logits else float(torch.nn.functional.cross_entropy(found.double(), torch.tensor(of.rows.gold)))


def test_several_data_sets_are_measured_in_one_pass_as_each_alone(
    models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same numbers, and the weights are set once a point for both."""
    first, second = matched(20), matched(9, start=40)
    alone = [lines(models, [each], LinePlan(4))[0][0] for each in (first, second)]
    assert alone[0].curve.loss != alone[1].curve.loss
    count, set_weights = [], Predictor.set

    def counted(self: Predictor, tensors: Any) -> None:
        count.append(1)
        set_weights(self, tensors)

    monkeypatch.setattr(Predictor, "set", counted)
    both = lines(models, [first, second], LinePlan(4))
    assert [[line.to_json() for line in of_set] for of_set in both] == [[line.to_json()] for line in alone]
    assert len(count) == 4


def test_the_head_of_a_is_kept_all_along(models: tuple[Path, Path]) -> None:
    """At lam = 1 it is b with the classifier of a; the distance leaves the head out, and with both heads it does not."""
    data = matched(20)
    ((both, kept),) = lines(models, [data], LinePlan(3, ("both", "A")))
    a, b = weights(models)
    assert kept.curve.loss[0] == both.curve.loss[0]
    assert kept.curve.loss[2] == pytest.approx(by_hand(models[0], {**b, **{n: a[n] for n in HEAD}}, data), abs=1e-5)
    assert both.curve.loss[2] == pytest.approx(by_hand(models[0], b, data), abs=1e-5)
    assert abs(kept.curve.loss[2] - both.curve.loss[2]) > 1e-3
    squares = {name: float((a[name].double() - b[name].double()).square().sum()) for name in a}
    assert both.summaries[-1].value == pytest.approx(math.sqrt(sum(squares.values())), rel=1e-9)
    without = sum(square for name, square in squares.items() if name not in HEAD)
    assert kept.summaries[-1].value == pytest.approx(math.sqrt(without), rel=1e-9)
    assert (both.curve.name, kept.curve.name) == ("naive", "naive, head of a")


def test_a_refitted_head_reads_the_features_of_every_point(models: tuple[Path, Path]) -> None:
    """Half way, transformers' own pooled outputs of the averaged model give the losses; other features do not."""
    data = matched(30)
    ((line,),) = lines(models, [data], LinePlan(3, ("refit",), seed=4))
    a, b = weights(models)
    half = {name: (a[name] + b[name]) / 2 for name in a}
    for at, tensors in ((0, a), (1, half), (2, b)):
        logits, _ = refitted_logits(by_hand(models[0], tensors, data, features=True), data, seed=4)
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(data.rows.gold))
        assert line.curve.loss[at] == pytest.approx(float(loss), rel=1e-3)
    assert len(set(line.curve.loss)) == 3
    assert line.curve.name == "naive, head re-fitted"


def test_a_task_of_numbers_has_squared_errors_and_no_error_barrier(tmp_path: Path) -> None:
    """The ends are the squared errors of transformers' own outputs; a head cannot be re-fitted to classes that are not there."""
    config = bert_config(labels=("LABEL_0",))
    models = tuple(save_checkpoint(tmp_path / name, config, seed=seed) for name, seed in (("a", 1), ("b", 2)))
    texts = matched(8).rows.texts
    rows = Rows(texts, tuple(0.5 * k for k in range(8)), (), "made", "test", tuple(map(str, range(8))))
    ((line,),) = lines(models, [MatchedTask(TASKS["stsb"], rows, (0,))], LinePlan(3))
    outputs = by_hand(models[0], load_file(models[0] / "model.safetensors"), matched(8), logits=True)[:, 0].double()
    assert line.curve.loss[0] == pytest.approx(float((outputs - torch.tensor(rows.gold)).square().mean()), rel=1e-4)
    assert [each.name for each in line.summaries] == [name for name in SOURCES if name != "error barrier"]
    with pytest.raises(TaskError, match="fits a head to classes, and stsb has none"):
        lines(models, [MatchedTask(TASKS["stsb"], rows, (0,))], LinePlan(3, ("refit",)))


def test_an_adaptive_line_holds_the_even_grid_and_points_averaged_by_hand(models: tuple[Path, Path]) -> None:
    """These two bend: points are added, at most four times as many, and one that is off the grid is a model between."""
    data = matched(12)
    ((even,),), ((line,),) = (lines(models, [data], LinePlan(3, adaptive=adaptive)) for adaptive in (False, True))
    loss = dict(zip(line.curve.lam, line.curve.loss, strict=True))
    assert [loss[lam] for lam in even.curve.lam] == list(even.curve.loss)
    assert 3 < len(loss) <= 12
    assert list(loss) == sorted(loss)
    a, b = weights(models)
    quarter = {name: 0.75 * a[name] + 0.25 * b[name] for name in a}
    assert loss[0.25] == pytest.approx(by_hand(models[0], quarter, data), abs=1e-5)


def test_the_distance_of_weights_at_the_ends_of_float32_is_finite(tmp_path: Path, models: tuple[Path, Path]) -> None:
    """A position that no row reaches is 3e38 in a and -3e38 in b: their difference is beyond float32."""
    folders = []
    for k, value in enumerate((3e38, -3e38)):
        tensors = weights(models)[k]
        tensors["bert.embeddings.position_embeddings.weight"][31] = value
        folders.append(save_checkpoint(tmp_path / str(k), tensors=tensors))
    ((line,),) = lines((folders[0], folders[1]), [matched(6)], LinePlan(3))
    values = {summary.name: summary.value for summary in line.summaries}
    assert values["distance"] == pytest.approx(6e38 * math.sqrt(24), rel=1e-6)
    assert math.isfinite(values["area"])
