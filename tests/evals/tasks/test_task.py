"""Labels are matched by name, and a sample is drawn from all rows."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pytest
import torch
from tiny import NLI, bert_config, random_tensors, save_checkpoint

from evals.predict.logits import encode_rows, match_labels, model_labels, predict, task_logits
from evals.predict.predictor import build_written
from evals.tasks import TASKS
from evals.tasks.label_names import column_of, plain
from evals.tasks.task import Rows
from merge.checkpoints.open import open_checkpoint
from merge.errors import TaskError

MNLI, SST2, HANS = TASKS["mnli"], TASKS["sst2"], TASKS["hans"]
HEAD = ("classifier.weight", "classifier.bias")


def rows_of(count: int) -> Rows:
    """Return rows that know their place, in text, label, id and extra."""
    return Rows(
        texts=tuple((f"text {k}",) for k in range(count)),
        gold=tuple(k % 2 for k in range(count)),
        labels=("negative", "positive"),
        data="numbered",
        split="validation",
        ids=tuple(f"id{k}" for k in range(count)),
        extra=tuple(range(count)),
    )


def fails(labels: tuple[str, ...], task: str = "mnli") -> str:
    """Assert that the labels are refused in one line that lists both sides, and return it."""
    with pytest.raises(TaskError) as caught:
        column_of(TASKS[task], labels, "m/")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("m/: ")
    assert ", ".join(labels) in message
    assert ", ".join(TASKS[task].labels) in message
    return message


# ---- labels ----


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_labels_are_matched_by_name_in_every_order(order: tuple[int, ...]) -> None:
    """Class i of the model is the task's class of the same name, wherever it stands."""
    assert column_of(MNLI, tuple(NLI[k] for k in order), "m/") == order


@pytest.mark.parametrize(
    "names",
    [
        ("entailment", "not_entailment"),
        ("entailment", "non-entailment"),
        ("Entailment", "Not Entailment"),
        ("ENTAILMENT", "NON_ENTAILMENT"),
        ("entailment", "nonentailment"),
    ],
)
def test_one_label_has_many_spellings(names: tuple[str, str]) -> None:
    """Case and joining say nothing, and RTE and HANS spell the same class in two ways; the order still counts."""
    assert column_of(HANS, names, "m/") == (0, 1)
    assert column_of(HANS, names[::-1], "m/") == (1, 0)


def test_sentiment_labels_match_without_regard_to_case() -> None:
    assert column_of(SST2, ("POSITIVE", "NEGATIVE"), "m/") == (1, 0)


def test_three_classes_fold_into_two() -> None:
    """On HANS, neutral and contradiction both are non-entailment, in the model's own order."""
    assert column_of(HANS, NLI, "m/") == (0, 1, 1)
    assert column_of(HANS, ("contradiction", "entailment", "neutral"), "m/") == (1, 0, 1)


def test_two_classes_never_unfold_into_three() -> None:
    """A HANS model cannot say which of the two MNLI classes it means, and gold labels are not folded for it unasked."""
    message = fails(("entailment", "non-entailment"), "mnli")
    assert "The model has 2 classes and the task 3, and gold labels are not folded" in message


@pytest.mark.parametrize("task", ["rte", "wnli", "advglue_rte", "hans"])
def test_three_way_models_fold_on_every_two_way_task_of_inference(task: str) -> None:
    entailment = TASKS[task].labels.index("entailment")
    folded = column_of(TASKS[task], ("contradict", "Entails", "neutral"), "m/")
    assert folded == (1 - entailment, entailment, 1 - entailment)


@pytest.mark.parametrize("task", ["qnli", "advglue_qnli"])
def test_three_way_models_do_not_fold_on_questions(task: str) -> None:
    """QNLI calls its classes as inference does, but asks whether a sentence answers a question."""
    fails(NLI, task)


@pytest.mark.parametrize("task", ["mrpc", "qqp", "paws_qqp", "paws_wiki"])
@pytest.mark.parametrize("word", ["equivalent", "duplicate", "paraphrase"])
def test_paraphrase_has_three_names(task: str, word: str) -> None:
    """A QQP model is scored on PAWS by name; two of the names are one class twice."""
    assert column_of(TASKS[task], (word, f"not_{word}"), "m/") == (1, 0)
    assert column_of(TASKS[task], (f"NOT {word}", word.title()), "m/") == (0, 1)
    fails(("duplicate", "paraphrase"), task)


def test_acceptability_has_two_names() -> None:
    assert column_of(TASKS["cola"], ("grammatical", "ungrammatical"), "m/") == (1, 0)


def test_a_number_takes_a_model_of_one_output() -> None:
    """Whatever that output is called; a classifier is refused."""
    assert column_of(TASKS["stsb"], ("LABEL_0",), "m/") == (0,)
    with pytest.raises(TaskError, match="stsb asks for a number, .* found 2 classes: negative, positive"):
        column_of(TASKS["stsb"], ("negative", "positive"), "m/")


def test_only_what_says_nothing_is_left_out_of_a_name() -> None:
    """Case and joints between words; a sign is no joint, and none is not a negation."""
    assert plain("Not Entailment") == plain("NON-ENTAILMENT") == plain("nonentailment") == plain("not_entailment")
    assert plain("not_x") == plain("non x") == plain("Non-X")
    assert len({plain(name) for name in ("-1", "1", "none", "note", "nonx", "x", "-")}) == 7


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        ("mnli", ("entailment", "neutral")),
        ("mnli", ("entailment", "neutral", "neutral")),
        ("mnli", ("entailment", "neutral", "contradiction", "Neutral")),
        ("mnli", ("entailment", "neutral", "contradiction", "other")),
        ("sst2", ("pos", "neg")),
        ("sst2", ("positive",)),
        ("hans", ("neutral", "contradiction")),
        ("hans", ("entailment", "paraphrase")),
    ],
)
def test_labels_that_are_not_the_tasks_are_refused(task: str, labels: tuple[str, ...]) -> None:
    """A class too few, too many, twice or unknown: nothing is guessed."""
    fails(labels, task)


def test_placeholder_names_are_refused_with_the_flag_to_type() -> None:
    """LABEL_0 may be any class: the very error that scores 0 or 1 on HANS. The example has as many names as the model."""
    assert "--labels entailment,neutral,contradiction" in fails(("LABEL_0", "LABEL_1", "LABEL_2"), "mnli")
    three = fails(("LABEL_0", "LABEL_1", "LABEL_2"), "hans")
    assert "These are placeholders: give its class names" in three
    assert three.endswith("--labels entailment,neutral,contradiction")
    assert fails(("LABEL_0", "LABEL_1"), "hans").endswith("--labels entailment,non-entailment")
    assert "Placeholder" not in fails(("yes", "no"), "hans")


# ---- labels of a checkpoint ----


def predictions_of(folder: Path, stated: tuple[str, ...] | None = None, task: str = "mnli") -> tuple[list[int], list]:
    """Return predicted classes and task logits of a checkpoint on a few sentences."""
    checkpoint = open_checkpoint(str(folder))
    texts = tuple((f"the {w} saw a river", f"who helped the {w}") for w in ("doctor", "lawyer", "a", "and", "quietly"))
    rows = Rows(texts, (0,) * 5, TASKS[task].labels, "five", "test", tuple("abcde"))
    columns = match_labels(TASKS[task], checkpoint, stated)
    raw = predict(build_written(checkpoint), encode_rows(checkpoint, rows))
    logits, predicted = task_logits(raw, columns, TASKS[task])
    return predicted.tolist(), logits.tolist()


@pytest.mark.slow
def test_six_orders_of_one_model_give_the_same_predictions(tmp_path: Path) -> None:
    """Head rows and id2label permuted together are the same classifier, on MNLI and folded on HANS.

    The control is the same rows under names that stay: another classifier.
    """
    tensors = random_tensors(bert_config(), 4, torch.float32)
    seen: dict[str, list] = {"mnli": [], "hans": []}
    for order in permutations(range(3)):
        moved = tensors | {name: tensors[name][list(order)] for name in HEAD}
        config = bert_config(labels=tuple(NLI[k] for k in order))
        folder = save_checkpoint(tmp_path / "".join(map(str, order)), config, tensors=moved)
        for task in seen:
            seen[task].append(predictions_of(folder, task=task))
    for task, results in seen.items():
        assert len(results) == 6
        assert all(predicted == results[0][0] for predicted, _ in results), task
        assert all(torch.allclose(torch.tensor(x), torch.tensor(results[0][1]), atol=1e-6) for _, x in results), task
    rolled = tensors | {name: tensors[name].roll(1, 0) for name in HEAD}
    wrong = predictions_of(save_checkpoint(tmp_path / "wrong", bert_config(), tensors=rolled))
    assert wrong[0] == [(k + 1) % 3 for k in seen["mnli"][0][0]]


def test_stated_labels_stand_in_for_placeholders(tmp_path: Path) -> None:
    """The names on the command line count instead of the config's, and mean what a config of these names means."""
    tensors = random_tensors(bert_config(), 4, torch.float32)
    order = ("contradiction", "entailment", "neutral")
    named = save_checkpoint(tmp_path / "named", bert_config(labels=order), tensors=tensors)
    bare = save_checkpoint(tmp_path / "bare", bert_config(labels=("LABEL_0", "LABEL_1", "LABEL_2")), tensors=tensors)
    with pytest.raises(TaskError, match="These are placeholders"):
        predictions_of(bare)
    assert predictions_of(bare, order) == predictions_of(named)
    assert predictions_of(bare, NLI)[0] != predictions_of(named)[0]


@pytest.mark.parametrize("stated", [NLI[:2], (*NLI, "other")])
def test_a_wrong_count_of_stated_labels_is_refused(tmp_path: Path, stated: tuple[str, ...]) -> None:
    checkpoint = open_checkpoint(str(save_checkpoint(tmp_path / "m")))
    with pytest.raises(TaskError, match=f"has 3 classes, but --labels names {len(stated)}"):
        model_labels(checkpoint, stated)


def test_classes_are_counted_by_the_classifier_and_not_by_another_bias(tmp_path: Path) -> None:
    """DistilBERT has a pre_classifier.bias of the hidden size, whose name ends like the classifier's."""
    config = {
        "architectures": ["DistilBertForSequenceClassification"],
        "model_type": "distilbert",
        "vocab_size": 18,
        "dim": 24,
        "hidden_dim": 40,
        "n_layers": 1,
        "n_heads": 4,
        "max_position_embeddings": 32,
    }
    two = open_checkpoint(str(save_checkpoint(tmp_path / "two", config)))
    assert two.tensors["pre_classifier.bias"].shape == (24,)
    assert model_labels(two, None) == ("LABEL_0", "LABEL_1")
    assert model_labels(two, ("negative", "positive")) == ("negative", "positive")
    assert match_labels(SST2, two, ("positive", "negative")) == (1, 0)


def test_a_model_that_is_no_sequence_classifier_is_one_line(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(save_checkpoint(tmp_path / "mlm", bert_config("BertForMaskedLM"))))
    with pytest.raises(TaskError) as caught:
        model_labels(checkpoint, None)
    assert str(caught.value) == f"{checkpoint.source} is a BertForMaskedLM; this task needs a sequence classifier."


# ---- samples ----


def test_a_sample_is_drawn_over_all_rows() -> None:
    """Over 1,000 seeds each of 50 rows is in a sample of 10 about 200 times (deviation 12.6; six of these is 76).

    Taking the first rows, the control, would give 1,000 and 0.
    """
    rows = rows_of(50)
    counts = Counter(place for seed in range(1000) for place in rows.sample(10, seed).extra)
    assert sum(counts.values()) == 10_000
    assert all(abs(counts[place] - 200) <= 76 for place in range(50))


def test_a_sample_is_decided_by_its_seed() -> None:
    rows = rows_of(1000)
    assert rows.sample(100, 1) == rows.sample(100, 1)
    assert rows.sample(100, 1).ids != rows.sample(100, 2).ids


def test_a_sample_keeps_the_order_of_the_rows_and_their_fields_together() -> None:
    """Text, label, id and extra of a row stay one row; none is drawn twice."""
    drawn = rows_of(500).sample(60, 3)
    assert len(drawn) == len(set(drawn.extra)) == 60
    assert list(drawn.extra) == sorted(drawn.extra)
    assert drawn.texts == tuple((f"text {k}",) for k in drawn.extra)
    assert drawn.gold == tuple(k % 2 for k in drawn.extra)
    assert drawn.ids == tuple(f"id{k}" for k in drawn.extra)
    assert drawn.data == "numbered; 60 of 500 rows drawn with seed 3"


@pytest.mark.parametrize("count", [None, 5, 6])
def test_a_sample_as_large_as_the_rows_is_the_rows(count: int | None) -> None:
    rows = rows_of(5)
    assert rows.sample(count, 0) is rows


def test_rows_without_extras_are_sampled_too() -> None:
    rows = replace(rows_of(9), extra=())
    assert rows.sample(4, 0).extra == ()
    assert len(rows.sample(4, 0)) == 4


def test_the_hash_of_rows_changes_with_all_that_scores_depend_on_and_with_nothing_else() -> None:
    """Where rows were read and what they are called does not matter; HANS pairs carry heuristics in `extra`."""
    rows = rows_of(4)
    for same in (replace(rows, data="elsewhere"), replace(rows, split="test"), replace(rows, ids=tuple("abcd"))):
        assert same.hash == rows.hash
    others = [
        replace(rows, texts=(("changed",), *rows.texts[1:])),
        replace(rows, texts=rows.texts[::-1]),
        replace(rows, gold=(1, *rows.gold[1:])),
        replace(rows, labels=("positive", "negative")),
        replace(rows, extra=(9, *rows.extra[1:])),
    ]
    assert len({rows.hash, *(other.hash for other in others)}) == 6


def test_texts_do_not_run_into_one_another() -> None:
    """("ab", "c") and ("a", "bc") are two pairs."""
    first = replace(rows_of(1), texts=(("ab", "c"),))
    assert first.hash != replace(first, texts=(("a", "bc"),)).hash
