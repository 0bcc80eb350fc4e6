"""The losses of a cocktail against transformers' own, one text at a time, and its weights against scipy's softmax."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.special
import torch
import transformers
from quick import quick_on
from safetensors.torch import load_file
from tiny import NLI, WORDS, bert_config, random_tensors, save_checkpoint, write_text

import merge.run.search.cocktail as module
from merge.checkpoints.inputs import encode, load_tokenizer, tokenise
from merge.checkpoints.open import open_checkpoint
from merge.commands.merge_models import main
from merge.errors import CalibrationError, CheckpointError, MismatchError, RecipeError
from merge.methods.statistics.fisher import load_model
from merge.recipe.recipe import Recipe, make_recipe, read_recipe
from merge.run.run import run
from merge.run.search.cocktail import (
    Examples,
    check_head,
    cocktail_weights,
    gold_of,
    label_loss,
    read_examples,
    softmax,
    word_loss,
)
from merge.text.masking import draw_words_of_each_text
from merge.text.source import StatisticsEntry

COUNT = 40


def write_examples(path: Path, labels: tuple[str, ...] = NLI, extra: tuple[dict[str, Any], ...] = ()) -> Path:
    draw = np.random.default_rng(0)
    rows = [
        {
            "premise": " ".join(draw.choice(WORDS[:11], draw.integers(2, 10))),
            "hypothesis": " ".join(draw.choice(WORDS[:11], draw.integers(2, 6))),
            "label": str(draw.choice(labels)),
        }
        for _ in range(COUNT)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in (*rows, *extra)), encoding="utf-8")
    return path


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    return [save_checkpoint(tmp_path / name, seed=k) for k, name in enumerate("abc")]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_examples(tmp_path / "dev.jsonl")


def cocktail(models: list[Path], data: Path | None, output: Path, **more: Any) -> Recipe:
    statistics = {} if data is None else {"text": str(data), "label_column": "label"}
    values = {"models": [str(m) for m in models], "method": "cocktail", "statistics": statistics, "output": str(output)}
    return make_recipe(values | more)


def losses_of(folders: list[Path], data: Path) -> list[float]:
    """Return the mean of transformers' own loss, one text at a time."""
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    out = []
    for folder in folders:
        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval().double()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        losses = []
        for row in rows:
            inputs = tokenizer(row["premise"], row["hypothesis"], return_tensors="pt")
            with torch.no_grad():
                losses.append(float(model(**inputs, labels=torch.tensor([model.config.label2id[row["label"]]])).loss))
        out.append(float(np.mean(losses)))
    return out


@pytest.mark.parametrize("temperature", quick_on((0.05,), (5.0, 0.05)))
def test_weights_are_the_softmax_of_minus_the_losses(
    models: list[Path], data: Path, tmp_path: Path, temperature: float
) -> None:
    """Derived again with transformers and scipy; the merge is the average by these weights, and its notes say them."""
    report = run(cocktail(models, data, tmp_path / "out", settings={"temperature": temperature}))
    losses = losses_of(models, data)
    expected = scipy.special.softmax(-np.array(losses) / temperature)
    weights = report.recipe.settings["weights"]
    assert np.abs(np.array(weights) - expected).max() < 1e-5
    assert np.ptp(expected) > 0.01
    parts, merged = [load_file(m / "model.safetensors") for m in models], load_file(tmp_path / "out/model.safetensors")
    for name in merged:
        mean = sum(float(w) * part[name].double() for w, part in zip(expected, parts, strict=True))
        assert torch.allclose(merged[name].double(), torch.as_tensor(mean), atol=1e-4)
    manifest = json.loads((tmp_path / "out" / "merge.json").read_text(encoding="utf-8"))
    assert manifest["recipe"]["settings"]["weights"] == weights
    for model, loss, weight in zip(models, losses, expected, strict=True):
        (note,) = [n for n in manifest["notes"] if n.startswith(f"cocktail: {model} has a loss of")]
        said = [float(word.strip(",")) for word in note.split() if word.strip(",").replace(".", "").isdigit()]
        assert said == pytest.approx([loss, weight], abs=1e-4)


def test_the_temperature_goes_from_the_best_model_to_the_average() -> None:
    losses = [0.7, 0.4, 0.9]
    assert softmax([-loss / 1e-4 for loss in losses]) == [0.0, 1.0, 0.0]
    assert softmax([-loss / 1e6 for loss in losses]) == pytest.approx([1 / 3] * 3, abs=1e-6)
    assert softmax([-1e5, -1e5 + np.log(3)]) == pytest.approx([0.25, 0.75])


def test_the_recipe_beside_the_merge_repeats_it_without_the_data(
    models: list[Path], data: Path, tmp_path: Path
) -> None:
    run(cocktail(models, data, tmp_path / "out"))
    data.unlink()
    again = read_recipe(tmp_path / "out" / "recipe.yaml").model_copy(update={"output": str(tmp_path / "again")})
    report = run(again)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "again"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert "cocktail: weights are given, so no loss was measured" in report.notes


def test_a_dry_run_and_another_method_measure_nothing(models: list[Path], data: Path, tmp_path: Path) -> None:
    recipe = cocktail(models, data, tmp_path / "out")
    assert "weights" not in run(recipe, dry_run=True).recipe.settings
    other = make_recipe({"models": [str(m) for m in models]})
    assert cocktail_weights(other, [open_checkpoint(str(m)) for m in models]) == (other, ())


# ---- labels ----


def test_classes_are_found_by_name(models: list[Path], data: Path, tmp_path: Path) -> None:
    """A model with its classes in another order, and in capitals, has the same loss; taken by position it would not."""
    turn = [2, 0, 1]
    tensors = load_file(models[0] / "model.safetensors")
    turned = tensors | {n: tensors[n][turn] for n in ("classifier.weight", "classifier.bias")}
    names = tuple(NLI[k].upper() for k in turn)
    other = save_checkpoint(tmp_path / "turned", bert_config(labels=names), tensors=turned)
    entry = StatisticsEntry(text=str(data), label_column="label")
    examples = read_examples(entry, 0)
    one, two = (open_checkpoint(str(folder)) for folder in (models[0], other))
    read = encode(load_tokenizer(one.folder), examples.texts, 32)
    loss = label_loss(one, read, gold_of(examples, one))
    assert label_loss(two, read, gold_of(examples, two)) == pytest.approx(loss, abs=1e-6)
    assert abs(label_loss(two, read, gold_of(examples, one)) - loss) > 0.01
    assert gold_of(Examples((("a",),), ("Neutral",), "dev.jsonl"), two) == [2]  # data in another case too


@pytest.mark.parametrize(("label", "said"), [("1", "no classes of .*: 1; its classes: entail"), ("maybe", "maybe")])
def test_a_label_that_is_no_class_is_refused(models: list[Path], label: str, said: str) -> None:
    """A number is a place in somebody's order, not a name."""
    with pytest.raises(MismatchError, match=said):
        gold_of(Examples((("a",),), (label,), "dev.jsonl"), open_checkpoint(str(models[0])))


def test_a_class_that_stands_twice_is_refused(tmp_path: Path) -> None:
    config = bert_config(labels=("x", "y", "X"))
    model = open_checkpoint(str(save_checkpoint(tmp_path / "twice", config)))
    with pytest.raises(MismatchError, match="a label occurs twice in id2label: x, y, X"):
        gold_of(Examples((("a",),), ("x",), "dev.jsonl"), model)


def test_a_broken_model_is_named(
    models: list[Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "label_loss", lambda *_: float("inf"))
    with pytest.raises(CheckpointError, match="a: its loss on dev.jsonl.* is inf"):
        run(cocktail(models, data, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# ---- examples ----


def test_examples_without_text_or_label_are_left_out_and_counted(tmp_path: Path) -> None:
    bad = ({"premise": "a", "hypothesis": "b", "label": None}, {"premise": "a", "hypothesis": "b", "label": "-"},
           {"premise": " ", "hypothesis": "b", "label": "neutral"})  # fmt: skip
    path = write_examples(tmp_path / "dev.jsonl", extra=bad)
    found = read_examples(StatisticsEntry(text=str(path), label_column="label"), 0)
    assert len(found.texts) == len(found.labels) == COUNT
    assert found.notes == ("3 rows of dev.jsonl have no text or no label and were left out",)
    assert set(found.labels) == set(NLI)
    assert all(len(texts) == 2 for texts in found.texts)


def test_a_sample_is_drawn_from_the_seed(data: Path) -> None:
    entry = StatisticsEntry(text=str(data), label_column="label", samples=10)
    first, again, other = (read_examples(entry, seed) for seed in (0, 0, 1))
    everything = read_examples(StatisticsEntry(text=str(data), label_column="label"), 0)
    assert first == again
    assert first.texts != other.texts
    pairs = set(zip(everything.texts, everything.labels, strict=True))
    assert len(first.texts) == 10
    assert set(zip(first.texts, first.labels, strict=True)) <= pairs
    assert "10 of 40 labelled rows, column premise + hypothesis, seed 0" in first.source


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({}, "cocktail needs labelled examples"),
        ({"text": "dev.jsonl"}, "cocktail needs labelled examples"),
        ({"label_column": "label"}, "cocktail needs labelled examples"),
        ({"text": "dev.jsonl", "label_column": "labels"}, "line 1: no column 'labels'. Did you mean 'label'"),
        ({"text": "dev.jsonl", "label_column": "label", "text_column": "premis"}, 'no column "premis". Did you mean'),
        (
            {"text": "odd.jsonl", "label_column": "label"},
            "one well-known text column or pair, found none; name one column",
        ),
        ({"text": "empty.jsonl", "label_column": "label"}, "expected rows with text and a label, found none"),
        ({"text": "none.jsonl", "label_column": "label"}, "there is no such file"),
    ],
)
def test_examples_that_cannot_be_read_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: dict[str, Any], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_examples(tmp_path / "dev.jsonl")
    (tmp_path / "odd.jsonl").write_text('{"words": "a", "label": "neutral"}\n', encoding="utf-8")
    (tmp_path / "empty.jsonl").write_text('{"text": "a", "label": "-"}\n', encoding="utf-8")
    with pytest.raises(CalibrationError, match=said):
        read_examples(StatisticsEntry(**entry), 0)


# ---- masked words ----


def test_the_loss_of_a_masked_language_model_is_that_of_masked_words(tmp_path: Path) -> None:
    """Against transformers' own loss, which reads no place whose label is -100; in float64, over all batches at once."""
    config = bert_config("BertForMaskedLM")
    checkpoint = open_checkpoint(str(save_checkpoint(tmp_path / "m", config, tensors=random_tensors(config, 1))))
    tokenizer = load_tokenizer(checkpoint.folder)
    texts = [(line,) for line in write_text(tmp_path / "t.txt", 500).read_text(encoding="utf-8").splitlines()]
    batches, _ = tokenise(tokenizer, texts, checkpoint.config)
    assert len(batches) > 1
    generator, model = torch.Generator().manual_seed(4), load_model(checkpoint)
    sums, counts = [], []
    for batch in batches:
        words = (batch["input_ids"] > 4) & (batch["attention_mask"] == 1)
        where = draw_words_of_each_text(words, generator)
        labels = torch.where(where, batch["input_ids"], -100)
        masked = torch.where(where, tokenizer.mask_token_id, batch["input_ids"])
        with torch.no_grad():
            sums.append(float(model(**{**batch, "input_ids": masked}, labels=labels).loss) * int(where.sum()))
        counts.append(int(where.sum()))
    assert word_loss(checkpoint, batches, 4) == pytest.approx(sum(sums) / sum(counts), abs=1e-10)
    assert word_loss(checkpoint, batches, 5) != word_loss(checkpoint, batches, 4)


def test_fifteen_in_a_hundred_words_are_masked_and_at_least_one() -> None:
    lengths = [0, 1, 3, 10, 20, 40]
    words = torch.arange(40) < torch.tensor(lengths)[:, None]
    where = draw_words_of_each_text(words, torch.Generator().manual_seed(0))
    assert not bool((where & ~words).any())
    assert where.sum(1).tolist() == [0, 1, 1, 2, 3, 6]
    share = sum(draw_words_of_each_text(words, torch.Generator().manual_seed(k)) for k in range(400))[5] / 400
    assert 0.08 < float(share.min()) < 0.15 < float(share.max()) < 0.22  # every place alike: 0.15 +- 4 standard errors


def test_masked_language_models_are_mixed_by_plain_text(tmp_path: Path) -> None:
    config = bert_config("BertForMaskedLM")
    models = [save_checkpoint(tmp_path / name, config, seed=k) for k, name in enumerate("ab")]
    text = write_text(tmp_path / "t.txt", 60)
    report = run(cocktail(models, None, tmp_path / "out", statistics={"text": str(text)}))
    weights = report.recipe.settings["weights"]
    assert sum(weights) == pytest.approx(1.0)
    assert weights[0] != weights[1]
    one = open_checkpoint(str(models[0]))
    with pytest.raises(CalibrationError, match="reads no labels. Leave label_column out"):
        cocktail_weights(cocktail(models, text, tmp_path / "x"), [one, one])
    with pytest.raises(MismatchError, match="compare only in one vocabulary"):
        cocktail_weights(
            cocktail(models, None, tmp_path / "x", statistics={"text": str(text)}, tokenizer="union"), [one, one]
        )


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (bert_config("BertForTokenClassification"), "is a BertForTokenClassification, for which no loss is defined"),
        (bert_config("BertForQuestionAnswering"), "is a BertForQuestionAnswering"),
        (bert_config("BertModel"), "is a BertModel"),
        (bert_config(labels=("score",)), "does not predict one of several classes"),
        (bert_config(problem_type="multi_label_classification"), "problem_type multi_label_classification"),
        (bert_config(problem_type="regression"), "problem_type regression"),
    ],
)
def test_a_head_without_such_a_loss_is_refused_by_name(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    model = open_checkpoint(str(save_checkpoint(tmp_path / "m", config)))
    with pytest.raises(MismatchError, match=said):
        check_head(model)


def test_a_label_column_is_cocktails_alone() -> None:
    """Another method would not read it, and say nothing."""
    values = {"models": ["a", "b"], "statistics": {"text": "t.jsonl", "label_column": "label"}}
    with pytest.raises(RecipeError, match="only method cocktail and align by: learned read label_column"):
        make_recipe({**values, "method": "fisher"})
    assert make_recipe({**values, "method": "cocktail"}).statistics.label_column == "label"


def test_flags_say_where_the_examples_are(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--statistics-text", "dev.jsonl", "--statistics-column", "premise,hypothesis", "--label-column", "label",
             "--statistics-samples", "9"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["merge-models", "a", "b", "--method", "cocktail", *flags, "--print-recipe"])
    main()
    said = capsys.readouterr().out
    for line in ("text: dev.jsonl", "- premise\n  - hypothesis", "label_column: label", "samples: 9"):
        assert line in said
