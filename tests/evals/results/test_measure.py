"""The line between two models is made of models averaged by hand; a stored result is keyed by what decides it."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import NLI, WORDS, bert_config, random_tensors, save_checkpoint, write_text
from torch import Tensor

from evals.heuristics.grammar import HansPair
from evals.paths.barrier import barrier_key, barrier_record, measure_pair
from evals.paths.line import Curve
from evals.predict.logits import match_labels
from evals.predict.predictor import Predictor
from evals.results.measure import is_of_run, named, record_key, score_key, score_model
from evals.results.predictions import read_predictions_table
from evals.results.store import add_result, load_results
from evals.tasks import TASKS
from evals.tasks.label_names import MatchedTask
from evals.tasks.task import EvalTask, Rows
from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.model_set import ModelSet
from merge.checkpoints.open import open_checkpoint
from merge.recipe.recipe import make_recipe
from merge.run.plan.heads import plan_heads
from merge.run.rebase import rebase
from merge.symmetry.architectures import spec_for
from merge.symmetry.permutation import apply, restrict
from merge.symmetry.permutation import random as random_permutation

MNLI, HANS = TASKS["mnli"], TASKS["hans"]
HEAD = ("classifier.weight", "classifier.bias")


def rows_of(count: int = 40, seed: int = 0) -> Rows:
    """Return random MNLI rows over the tiny vocabulary."""
    generator = random.Random(seed)

    def text() -> str:
        return " ".join(generator.choice(WORDS[:11]) for _ in range(generator.randint(2, 12)))

    texts = tuple((text(), text()) for _ in range(count))
    gold = tuple(generator.randrange(3) for _ in range(count))
    return Rows(texts, gold, MNLI.labels, "made", "test", tuple(map(str, range(count))))


def opened(folder: Path) -> Checkpoint:
    return open_checkpoint(str(folder))


def by_hand(folder: Path, rows: Rows, tensors: Mapping[str, Tensor] | None = None) -> tuple[float, float]:
    """Return (mean loss, accuracy) by transformers alone, one row at a time, after a swap of the weights."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(str(folder), dtype=torch.float32).eval()
    if tensors is not None:
        model.load_state_dict(dict(tensors))
    losses, hits = [], 0
    with torch.no_grad():
        for texts, gold in zip(rows.texts, rows.gold, strict=True):
            logits = model(**tokenizer(*texts, return_tensors="pt")).logits[0].double()
            losses.append(float(logits.logsumexp(0) - logits[gold]))
            hits += int(logits.argmax()) == gold
    return sum(losses) / len(losses), hits / len(losses)


def line(
    a: Path, b: Path, rows: Rows, points: int = 5, task: EvalTask = MNLI, **align: Any
) -> tuple[list[Curve], list[str]]:
    """Return the curves between two checkpoints, as the command measures them."""
    pair = opened(a), opened(b)
    recipe = make_recipe({"models": [str(a), str(b)], "align": align})
    columns = match_labels(task, pair[0], None)
    models = ModelSet(pair)
    rebased = rebase(recipe.align, plan_heads(None, models))
    return measure_pair(pair, models, rebased, MatchedTask(task, rows, columns), points)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("models")
    return save_checkpoint(root / "a", seed=1), save_checkpoint(root / "b", seed=2)


# ---- the line ----


def test_the_line_runs_through_models_averaged_by_hand(models: tuple[Path, Path]) -> None:
    """At 0 and 1 the two models themselves, at 0.25 the weights (3 a + b) / 4, each evaluated by transformers alone."""
    a, b = models
    rows = rows_of()
    (curve,), notes = line(a, b, rows)
    assert curve.lam == (0, 0.25, 0.5, 0.75, 1)
    left, right = (load_file(folder / "model.safetensors") for folder in models)
    quarter = {name: (3 * left[name] + right[name]) / 4 for name in left}
    points = {0: by_hand(a, rows), 1: by_hand(a, rows, quarter), 4: by_hand(b, rows)}
    for at, (loss, accuracy) in points.items():
        assert abs(curve.loss[at] - loss) < 1e-5
        assert curve.accuracy[at] == pytest.approx(accuracy, abs=1e-12)
    assert abs(points[0][0] - points[1][0]) > 1e-2
    assert abs(points[4][0] - points[1][0]) > 1e-2
    assert (curve.name, notes) == ("naive", [])


def test_ends_agree_with_the_scores_of_each_model(models: tuple[Path, Path]) -> None:
    """Two ways through the package to one number."""
    rows = rows_of()
    (curve,), _ = line(*models, rows, points=3)
    for folder, at in zip(models, (0, -1), strict=True):
        scores = score_model(opened(folder), MNLI, rows, None)[0]["scores"]
        assert abs(scores["loss"] - curve.loss[at]) < 1e-6
        assert scores["accuracy"] == curve.accuracy[at]


def test_the_line_of_a_model_to_itself_is_level(models: tuple[Path, Path]) -> None:
    (curve,), _ = line(models[0], models[0], rows_of())
    assert max(curve.loss) - min(curve.loss) < 1e-6
    assert curve.barrier < 1e-6


@pytest.mark.slow
def test_the_shared_start_of_two_paths_is_measured_once(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The naive and the aligned line begin at the same model: with n points each, 2 n - 1 models are run.

    They part after it: b is a with its units elsewhere, so that the aligned line is level and the naive one is not.
    """
    tensors, spec = load_file(models[0] / "model.safetensors"), spec_for(bert_config())
    drawn = random_permutation(spec, {n: tuple(t.shape) for n, t in tensors.items()}, torch.Generator().manual_seed(5))
    moved = apply(spec, restrict(drawn, [axis for axis in drawn.indices if axis != "labels"]), tensors)
    ran: list[int] = []
    whole = Predictor.set
    monkeypatch.setattr(Predictor, "set", lambda self, tensors: ran.append(1) or whole(self, tensors))
    copy = save_checkpoint(tmp_path / "copy", tensors=moved)
    curves, _ = line(models[0], copy, rows_of(), points=4, by="weights")
    assert [curve.name.split()[0] for curve in curves] == ["naive", "aligned"]
    assert len(ran) == 2 * 4 - 1
    assert curves[0].loss[0] == curves[1].loss[0]
    assert curves[1].loss == pytest.approx([curves[0].loss[0]] * 4, abs=1e-5)
    assert abs(curves[0].loss[1] - curves[0].loss[0]) > 1e-2


def test_the_way_back_is_the_way_there(models: tuple[Path, Path]) -> None:
    """Swapping a and b reverses the curve, so every figure stays."""
    rows = rows_of()
    (there,), _ = line(*models, rows)
    (back,), _ = line(*models[::-1], rows)
    assert back.loss == pytest.approx(there.loss[::-1], abs=1e-6)
    assert back.barrier == pytest.approx(there.barrier, abs=1e-6)
    assert back.convexity_gap == pytest.approx(there.convexity_gap, abs=1e-6)


def test_labels_in_another_order_do_not_change_the_line(models: tuple[Path, Path], tmp_path: Path) -> None:
    """b with its head rows and names permuted is the same classifier; without the names it is another."""
    a, b = models
    rows, tensors = rows_of(), random_tensors(bert_config(), 2, torch.float32)
    moved = tensors | {name: tensors[name][[2, 0, 1]] for name in HEAD}
    named_so = save_checkpoint(tmp_path / "named", bert_config(labels=(NLI[2], NLI[0], NLI[1])), tensors=moved)
    unnamed = save_checkpoint(tmp_path / "unnamed", tensors=moved)
    (straight,), _ = line(a, b, rows)
    (same,), _ = line(a, named_so, rows)
    (other,), _ = line(a, unnamed, rows)
    assert same.loss == pytest.approx(straight.loss, abs=1e-6)
    assert abs(other.loss[-1] - straight.loss[-1]) > 1e-2


def test_float64_and_bfloat16_models_meet_in_float32(tmp_path: Path) -> None:
    """Stored dtypes may differ between a and b; the line is that of their float32 values."""
    double = random_tensors(bert_config(), 1, torch.float64)
    half = random_tensors(bert_config(), 2, torch.bfloat16)
    a = save_checkpoint(tmp_path / "a", tensors=double)
    b = save_checkpoint(tmp_path / "b", tensors=half)
    rows = rows_of(20)
    (curve,), _ = line(a, b, rows, points=3)
    middle = {name: (double[name].float() + half[name].float()) / 2 for name in double}
    plain = save_checkpoint(tmp_path / "plain", seed=1)
    assert abs(curve.loss[1] - by_hand(plain, rows, middle)[0]) < 1e-5


def test_three_classes_on_two_are_pooled_and_said(models: tuple[Path, Path]) -> None:
    """The loss on HANS is that of max-pooled logits, computed here by hand at an end; the note names what is pooled."""
    a, b = models
    rows = replace(rows_of(), labels=HANS.labels, gold=tuple(k % 2 for k in range(40)))
    (curve,), notes = line(a, b, rows, points=3, task=HANS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(a))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(str(a)).eval()
    total = 0.0
    with torch.no_grad():
        for texts, gold in zip(rows.texts, rows.gold, strict=True):
            logits = model(**tokenizer(*texts, return_tensors="pt")).logits[0].double()
            two = torch.stack([logits[0], logits[1:].max()])
            total += float(two.logsumexp(0) - two[gold])
    assert abs(curve.loss[0] - total / 40) < 1e-5
    assert len(notes) == 1
    assert "(neutral, contradiction) are pooled by their maximum" in notes[0]


def test_cut_rows_are_said(models: tuple[Path, Path]) -> None:
    rows = rows_of(3)
    rows = replace(rows, texts=(("the " * 40, "river"), *rows.texts[1:]))
    _, notes = line(*models, rows, points=3)
    assert notes == ["only the start was read of rows longer than the model takes: 1 of 3"]


def test_the_weights_read_are_not_written_to(models: tuple[Path, Path]) -> None:
    before = [opened(folder).content_hash for folder in models]
    line(*models, rows_of(5), points=3)
    assert [opened(folder).content_hash for folder in models] == before


# ---- records ----


def test_a_scores_record_says_what_was_measured_on_what(models: tuple[Path, Path], tmp_path: Path) -> None:
    """Loss and accuracy as by hand, the setting, the model by name and content; it goes into results.json and back."""
    checkpoint, rows = opened(models[0]), rows_of()
    record, _ = score_model(checkpoint, MNLI, rows, None)
    loss, accuracy = by_hand(models[0], rows)
    assert abs(record["scores"]["loss"] - loss) < 1e-5
    assert record["scores"]["accuracy"] == pytest.approx(accuracy, abs=1e-12)
    assert record["model"] == {"name": str(models[0]), "hash": checkpoint.content_hash}
    assert (record["kind"], record["task"], record["split"], record["data"], record["n"]) == (
        "scores", "mnli", "test", "made", 40,
    )  # fmt: skip
    assert record["labels"] == list(NLI)
    assert record["key"] == score_key(checkpoint, MNLI, rows, None)
    assert record["rows"] == rows.hash
    assert record["seed"] == 0
    assert "hans" not in record
    assert "predictions" not in record
    assert set(record["versions"]) == {"merge-models", "torch", "transformers"}
    add_result(tmp_path, record)
    assert load_results(tmp_path) == json.loads(json.dumps([record]))


def test_intervals_stand_beside_the_scores(models: tuple[Path, Path]) -> None:
    """Wilson's interval of the accuracy by scipy; the loss has none; the seed is recorded."""
    record, _ = score_model(opened(models[0]), MNLI, rows_of(), None, seed=7)
    (name,) = record["intervals"]
    hits = round(record["scores"]["accuracy"] * 40)
    expected = scipy.stats.binomtest(hits, 40).proportion_ci(method="wilson")
    found = record["intervals"][name]
    assert (name, found["method"], found["level"], record["seed"]) == ("accuracy", "Wilson", 0.95, 7)
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_every_row_s_prediction_lies_beside_the_record(models: tuple[Path, Path], tmp_path: Path) -> None:
    """Logits as transformers gives them one row at a time, and what follows from them; the record names the file."""
    checkpoint, rows = opened(models[1]), rows_of()
    record, _ = score_model(checkpoint, MNLI, rows, None, folder=tmp_path)
    assert record["predictions"] == f"predictions/{record['key']}.parquet"
    table = read_predictions_table(tmp_path / record["predictions"])
    assert (table.key, table.rows, table.ids) == (record["key"], rows.hash, rows.ids)
    assert (table.labels, table.classes, table.heuristics) == (MNLI.labels, NLI, ())
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(models[1]))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(str(models[1])).eval()
    with torch.no_grad():
        expected = torch.cat([model(**tokenizer(*texts, return_tensors="pt")).logits for texts in rows.texts]).numpy()
    np.testing.assert_allclose(table.logits, expected, rtol=0, atol=1e-5)
    assert table.gold.tolist() == list(rows.gold)
    assert table.predicted.tolist() == expected.argmax(1).tolist()
    assert float((table.gold == table.predicted).mean()) == record["scores"]["accuracy"]
    assert np.abs(expected[1:] - table.logits[:-1]).max() > 1e-3  # rows shifted by one are told apart


def test_a_model_that_says_one_class_is_said_to(models: tuple[Path, Path], tmp_path: Path) -> None:
    """A head that is all bias predicts class 2; without the bias predictions vary, and nothing is said."""
    tensors = random_tensors(bert_config(), 2, torch.float32)
    flat = tensors | {"classifier.weight": torch.zeros(3, 24), "classifier.bias": torch.tensor([0.0, 0.0, 1.0])}
    record, _ = score_model(opened(save_checkpoint(tmp_path / "flat", tensors=flat)), MNLI, rows_of(), None)
    assert record["notes"][:1] == ["every row was given the same prediction: contradiction"]
    steep = tensors | {"classifier.weight": 50 * tensors["classifier.weight"], "classifier.bias": torch.zeros(3)}
    checkpoint = opened(save_checkpoint(tmp_path / "steep", tensors=steep))
    record, _ = score_model(checkpoint, MNLI, rows_of(), None, folder=tmp_path)
    assert len(set(read_predictions_table(tmp_path / record["predictions"]).predicted.tolist())) > 1
    assert not any("same prediction" in note for note in record["notes"])


@pytest.mark.parametrize(("size", "noted"), [(1e-7, True), (1e-3, False)])
def test_predictions_of_a_number_that_differ_by_rounding_are_said_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: float, noted: bool
) -> None:
    """As the cosines of a model that gives every text one embedding: a correlation of them would be one of rounding."""
    checkpoint = opened(save_checkpoint(tmp_path / "one", bert_config(labels=("score",))))
    rows = replace(rows_of(), labels=(), gold=tuple(float(k % 5) for k in range(40)))
    task = EvalTask("number", (), lambda _path, _seed: rows, "stsb")
    logits = 0.9 + size * torch.randn(40, 1, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(Predictor, "logits", lambda *_: logits)
    record, _ = score_model(checkpoint, task, rows, None)
    assert any("the same prediction but for rounding, 0.9" in note for note in record["notes"]) is noted


def test_a_task_with_a_score_of_its_own_is_scored_by_it(models: tuple[Path, Path], tmp_path: Path) -> None:
    """Two-class paraphrases: accuracy and F1 of the stored predictions, by scikit-learn."""
    config = bert_config(labels=("no", "yes"))
    checkpoint = opened(save_checkpoint(tmp_path / "two", config, seed=5))
    task = EvalTask("pairs", ("no", "yes"), lambda *_: rows, metric="mrpc")
    rows = replace(rows_of(), labels=task.labels, gold=tuple(k % 2 for k in range(40)))
    record, _ = score_model(checkpoint, task, rows, None, folder=tmp_path)
    predicted = read_predictions_table(tmp_path / record["predictions"]).predicted
    assert record["scores"]["f1"] == sklearn.metrics.f1_score(rows.gold, predicted, zero_division=0)
    assert record["scores"]["accuracy"] == sklearn.metrics.accuracy_score(rows.gold, predicted)
    assert list(record["scores"]) == ["accuracy", "f1", "loss"]
    assert list(record["intervals"]) == ["accuracy", "f1"]


def test_a_regression_task_is_scored_by_its_one_output(tmp_path: Path) -> None:
    """Correlations by scipy and the mean squared error of the single logit, each row by transformers alone."""
    checkpoint = opened(save_checkpoint(tmp_path / "one", bert_config(labels=("LABEL_0",)), seed=6))
    task = EvalTask("likeness", (), lambda *_: rows, metric="stsb")
    generator = random.Random(1)
    rows = replace(rows_of(), labels=(), gold=tuple(generator.uniform(0, 5) for _ in range(40)))
    record, _ = score_model(checkpoint, task, rows, None, folder=tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "one"))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(str(tmp_path / "one")).eval()
    with torch.no_grad():
        predicted = np.array([float(model(**tokenizer(*texts, return_tensors="pt")).logits) for texts in rows.texts])
    assert record["scores"]["pearson"] == pytest.approx(scipy.stats.pearsonr(rows.gold, predicted)[0], abs=1e-5)
    assert record["scores"]["spearmanr"] == pytest.approx(scipy.stats.spearmanr(rows.gold, predicted)[0], abs=1e-2)
    assert record["scores"]["loss"] == pytest.approx(float(np.mean((predicted - np.array(rows.gold)) ** 2)), abs=1e-4)
    table = read_predictions_table(tmp_path / record["predictions"])
    np.testing.assert_allclose(table.predicted, predicted, rtol=0, atol=1e-5)
    assert table.gold.tolist() == list(rows.gold)
    assert record["notes"] == []


def test_a_hans_record_holds_the_table(models: tuple[Path, Path], tmp_path: Path) -> None:
    """Accuracy by heuristic and gold label, counted here from the accuracy of each row's own prediction."""
    texts = rows_of(40).texts
    where = [("lexical_overlap", "ln_passive"), ("subsequence", "se_adjective")]
    pairs = tuple(
        HansPair(f"ex{k}", *texts[k], HANS.labels[k // 2 % 2], *where[k % 2], f"temp{k % 2}") for k in range(40)
    )
    gold = tuple(k // 2 % 2 for k in range(40))
    rows = Rows(texts, gold, HANS.labels, "made", "test", tuple(p.pair_id for p in pairs), pairs)
    record, _ = score_model(opened(models[0]), HANS, rows, None)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(models[0]))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(str(models[0])).eval()
    with torch.no_grad():
        predicted = [int(model(**tokenizer(*t, return_tensors="pt")).logits[0].argmax() > 0) for t in texts]
    hits = [one == other for one, other in zip(predicted, gold, strict=True)]
    assert record["scores"]["accuracy"] == record["hans"]["accuracy"] == pytest.approx(sum(hits) / 40)
    cell = [hits[k] for k in range(40) if k % 2 == 1 and gold[k] == 1]
    assert record["hans"]["heuristics"]["subsequence"]["non-entailment"] == pytest.approx(sum(cell) / len(cell))
    assert record["hans"]["counts"]["pairs"] == 40
    # HANS-LO: lexical overlap without entailment, a score of its own with an interval of its own.
    low = [hits[k] for k in range(40) if k % 2 == 0 and gold[k] == 1]
    assert list(record["scores"]) == ["accuracy", "hans_lo", "loss"]
    assert record["scores"]["hans_lo"] == pytest.approx(sum(low) / len(low))
    expected = scipy.stats.binomtest(sum(low), len(low)).proportion_ci(method="wilson")
    assert record["intervals"]["hans_lo"]["low"] == pytest.approx(expected.low, abs=1e-12)
    kept = [k for k in range(40) if k % 2 == 1]
    pick = {name: tuple(getattr(rows, name)[k] for k in kept) for name in ("texts", "gold", "ids", "extra")}
    without, _ = score_model(opened(models[0]), HANS, replace(rows, **pick), None, folder=tmp_path)
    assert "hans_lo" not in without["scores"] | without["intervals"]
    assert read_predictions_table(tmp_path / without["predictions"]).heuristics == ("subsequence",) * 20


def test_a_barrier_record_holds_curves_and_both_models(models: tuple[Path, Path], tmp_path: Path) -> None:
    """What the store asks for and nothing that JSON cannot hold; alignment only where there was one."""
    pair, rows = (opened(models[0]), opened(models[1])), rows_of(10)
    curves, notes = line(*models, rows, points=3)
    record = barrier_record("barrier-1", MatchedTask(MNLI, rows, (0, 1, 2)), pair, curves, None, notes, 1.5)
    assert (record["kind"], record["a"], record["b"]) == ("barrier", named(pair[0]), named(pair[1]))
    assert record["curves"] == [curve.to_json() for curve in curves]
    assert "alignment" not in record
    add_result(tmp_path, record)
    assert load_results(tmp_path) == json.loads(json.dumps([record]))
    aligned = barrier_record(
        "barrier-1", MatchedTask(MNLI, rows, (0, 1, 2)), pair, curves, {"by": "weights"}, notes, 1.5
    )
    assert aligned["alignment"] == {"by": "weights"}


# ---- keys ----


def changed_weights(folder: Path, to: Path) -> Path:
    """Return a copy of a checkpoint with one number changed."""
    save_checkpoint(to, seed=1)
    tensors = load_file(folder / "model.safetensors")
    tensors["classifier.bias"][0] += 1e-3
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    return to


def test_a_key_tells_values_apart_and_says_its_kind() -> None:
    assert record_key("scores", "mnli", [1, 2]).startswith("scores-")
    assert record_key("scores", "mnli", [1, 2]) == record_key("scores", "mnli", (1, 2))
    assert record_key("scores", "mnli", [1, 2]) != record_key("scores", "mnli", [2, 1])


def test_a_score_key_changes_with_what_decides_the_scores_and_with_nothing_else(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    """Where the model lies, what the data is called and labels stated as they already are decide nothing."""
    a, rows = opened(models[0]), rows_of()
    key = score_key(a, MNLI, rows, None)
    twin = opened(save_checkpoint(tmp_path / "twin", seed=1))
    same = [
        score_key(twin, MNLI, rows, None),
        score_key(a, MNLI, replace(rows, data="elsewhere", split="other"), None),
        score_key(a, MNLI, rows, NLI),
        score_key(a, MNLI, rows, tuple(name.upper() for name in NLI)),
    ]
    assert set(same) == {key}
    others = [
        score_key(opened(changed_weights(models[0], tmp_path / "changed")), MNLI, rows, None),
        score_key(a, HANS, replace(rows, labels=HANS.labels), None),
        score_key(a, MNLI, rows_of(seed=1), None),
        score_key(a, MNLI, rows.sample(39, 0), None),
        score_key(a, MNLI, rows, NLI[::-1]),
    ]
    assert len({key, *others}) == 6


@pytest.mark.parametrize(("metric", "drawn"), [("mrpc", True), ("cola", True), ("mnli", False)])
def test_a_record_of_another_seed_is_computed_again_where_its_intervals_are_drawn(
    tmp_path: Path, metric: str, drawn: bool
) -> None:
    """The interval is that of the seed asked for, as in a run of its own; that of an accuracy is a formula."""
    checkpoint = opened(save_checkpoint(tmp_path / "two", bert_config(labels=("no", "yes"))))
    rows = replace(rows_of(), labels=("no", "yes"), gold=tuple(k % 2 for k in range(40)))
    task = EvalTask("two", ("no", "yes"), lambda _path, _seed: rows, metric)
    first, second = (score_model(checkpoint, task, rows, None, seed=seed)[0] for seed in (0, 5))
    assert first["key"] == second["key"]
    assert (first["intervals"] != second["intervals"]) is drawn
    assert is_of_run(first, rows, 0, None)
    assert is_of_run(first, rows, 5, None) is not drawn


def test_a_record_of_rows_with_other_ids_is_computed_again(models: tuple[Path, Path], tmp_path: Path) -> None:
    """They stand beside the predictions; without a folder no predictions are kept."""
    checkpoint, rows = opened(models[0]), rows_of()
    record, _ = score_model(checkpoint, MNLI, rows, None, folder=tmp_path)
    renamed = replace(rows, ids=tuple(f"row {k}" for k in range(40)))
    assert [is_of_run(record, of, 0, tmp_path) for of in (rows, renamed)] == [True, False]
    assert is_of_run(record, renamed, 0, None)
    (tmp_path / record["predictions"]).unlink()
    assert not is_of_run(record, rows, 0, tmp_path)


def test_a_barrier_key_changes_with_what_decides_the_curves_and_with_nothing_else(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    """Calibration text counts by content; the seed decides only where something is drawn, in an alignment."""
    pair, rows = (opened(models[0]), opened(models[1])), rows_of()
    text, copy, other = (
        write_text(tmp_path / "a.txt"),
        write_text(tmp_path / "b.txt"),
        write_text(tmp_path / "c.txt", 5),
    )

    def key(
        pair: Any = pair, rows: Rows = rows, columns: Any = (0, 1, 2), points: int = 11, seed: int = 0, **align: Any
    ) -> str:
        recipe = make_recipe({"models": ["x", "y"], "align": align, "seed": seed})
        return barrier_key(pair, MatchedTask(MNLI, rows, tuple(columns)), recipe.align, seed, points)

    plain, aligned = key(), key(by="activations", text=str(text))
    assert plain == key(by="none") == key(seed=3)
    assert aligned == key(by="activations", text=str(copy)) == key(by="activations", text=str(text), samples=512)
    keys = [
        plain,
        aligned,
        key(pair=pair[::-1]),
        key(rows=rows_of(seed=1)),
        key(columns=(0, 2, 1)),
        key(points=21),
        key(by="activations"),
        key(by="weights", text=str(text)),
        key(by="activations", text=str(other)),
        key(by="activations", text=str(text), seed=1),
        key(by="activations", text=str(text), samples=99),
        key(by="activations", text=str(text), axes=("ffn",)),
        key(by="activations", text="org/name"),
    ]
    assert len(set(keys)) == len(keys) == 13
