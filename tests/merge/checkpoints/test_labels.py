"""Classes are matched by what they are called, never by where they stand."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from tiny import bert_config

from merge.checkpoints.labels import class_names, is_generic, label_order, numbering_notes
from merge.checkpoints.structure import structure_of
from merge.errors import MismatchError

NLI = ("entailment", "neutral", "contradiction")


def test_the_order_takes_the_other_models_classes_to_the_reference() -> None:
    """Class i of the reference is class p[i] of the other: reading the other's names in that order gives the reference's."""
    seen = set()
    for other in itertools.permutations(NLI):
        p = label_order(NLI, other, "a", "b")
        assert tuple(other[j] for j in p) == NLI
        seen.add(p)
    assert len(seen) == 6
    assert label_order(NLI, NLI, "a", "b") == (0, 1, 2)


def test_names_are_compared_without_regard_to_case_and_spaces() -> None:
    """CONTRADICTION and contradiction are one class to everybody but a computer."""
    assert label_order(NLI, ("CONTRADICTION", " Entailment", "Neutral "), "a", "b") == (1, 2, 0)


def test_sets_that_differ_are_an_error_that_lists_both() -> None:
    for other in [
        ("entailment", "neutral", "other"),
        ("entailment", "not_entailment"),
        ("LABEL_0", "LABEL_1", "LABEL_2"),
    ]:
        with pytest.raises(MismatchError, match="label sets differ") as caught:
            label_order(NLI, other, "a/", "b/")
        assert all(name in str(caught.value) for name in (*NLI, *other, "a/", "b/"))


@pytest.mark.parametrize(
    ("names", "where"), [((("yes", "Yes"), ("yes", "no")), "a/"), ((("yes", "no"), ("no", "NO")), "b/")]
)
def test_a_name_that_stands_twice_is_an_error_that_names_the_model(names: Any, where: str) -> None:
    with pytest.raises(MismatchError, match=f"{where}: a label occurs twice"):
        label_order(*names, "a/", "b/")


def test_names_are_read_in_the_order_of_the_logits() -> None:
    """JSON has text keys, and "10" sorts before "2"."""
    names = tuple(f"c{i}" for i in range(12))
    shuffled = {str(i): names[i] for i in (10, 2, 11, 0, 1, 9, 3, 8, 4, 7, 5, 6)}
    assert class_names(structure_of(bert_config() | {"id2label": shuffled})) == names


def test_placeholder_names_are_known_as_such() -> None:
    """LABEL_0, LABEL_1 are what transformers writes when nobody said what the classes mean."""
    assert is_generic(("LABEL_0", "LABEL_1"))
    assert is_generic(("entailment", "LABEL_1"))
    assert not is_generic(NLI)
    assert not is_generic(("LABEL_A", "MY_LABEL_0"))


def test_a_model_without_classes_has_no_names() -> None:
    """Every config has an id2label for transformers; only some heads have classes."""
    for architecture in ("BertModel", "BertForMaskedLM", "BertForQuestionAnswering", "BertForNextSentencePrediction"):
        assert class_names(structure_of(bert_config(architecture))) is None
    assert class_names(structure_of(bert_config())) == NLI
    unnamed = {key: value for key, value in bert_config().items() if key not in ("id2label", "label2id")}
    token_labels = class_names(
        structure_of(unnamed | {"num_labels": 3, "architectures": ["BertForTokenClassification"]})
    )
    assert token_labels == ("LABEL_0", "LABEL_1", "LABEL_2")


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (("0", "1", "2"), NLI),
        (("1", "2", "3"), ("LABEL_0", *NLI[:2])),
        (("0", "2", "5"), (NLI[0], "LABEL_1", NLI[1])),
    ],
)
def test_a_name_stands_at_the_place_that_its_number_says(keys: tuple[str, ...], expected: tuple[str, ...]) -> None:
    """id2label[2] is the class of logit 2, as for transformers, whatever numbers are left out. Numbers from 0 are the control."""
    config = bert_config() | {"id2label": dict(zip(keys, NLI, strict=True)), "label2id": None}
    assert class_names(structure_of(config)) == expected


def test_two_numberings_that_disagree_are_said() -> None:
    """Predictions are named by id2label; other names, such as the placeholders of a new config, contradict nothing."""
    for label2id, count in (
        ({name: 2 - i for i, name in enumerate(NLI)}, 1),
        ({name.upper(): i for i, name in enumerate(NLI)}, 0),
        ({"LABEL_0": 2, "LABEL_1": 1, "LABEL_2": 0}, 0),
        (None, 0),
    ):
        config = bert_config() | {"label2id": label2id}
        assert len(numbering_notes(structure_of(config), "a/")) == count, label2id
