"""The text of a layer plan: what it means, that it is read back, and where a mistake in it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from merge.errors import UsageError
from merge.layers.plans.document import plan_from_json
from merge.layers.plans.formatted import format_plan
from merge.layers.plans.making import Making
from merge.layers.plans.plan import LayerPlan
from merge.layers.plans.text import parse_plan
from merge.layers.plans.tokens import PlanSyntaxError
from merge.recipe.layer_recipe import plan_of_file

# The text, and its layers as (model, layer) with how each is made, written out by hand.
MEANT = {
    "A[0-3], A[3]*2, B[5,7]": [(((0, n),), None) for n in (0, 1, 2, 3, 3, 3)] + [(((1, n),), None) for n in (5, 7)],
    "A[3-1]": [(((0, n),), None) for n in (3, 2, 1)],
    "A2, B[ 0 - 1 ]*2": [(((0, 2),), None)] + [(((1, n),), None) for n in (0, 1, 0, 1)],
    "mean(A1, B1)": [(((0, 1), (1, 1)), Making("mean"))],
    "mean(0.7*A1, 0.3*A[2])": [(((0, 1), (0, 2)), Making("mean", (0.7, 0.3)))],
    "laco(A[2-4])": [(((0, 2), (0, 3), (0, 4)), Making("laco"))],
    "zero(A[3-4])": [(((0, 3),), Making("zero")), (((0, 4),), Making("zero"))],
    "A[0-1]-attention, B3-ffn-norm, A[2]-ffn-attention*2": [
        *((((0, n),), Making("without", without=("attention",))) for n in (0, 1)),
        (((1, 3),), Making("without", without=("ffn", "norm"))),
        *[(((0, 2),), Making("without", without=("attention", "ffn")))] * 2,
    ],
    "A0, affine(B2->B5)": [(((0, 0),), None), (((1, 4),), Making("affine", states=(2, 5)))],
    "A0, affine(A1->B5)": [(((0, 0),), None), (((1, 4),), Making("affine", states=(1, 5), reads=0))],
}


@pytest.mark.parametrize("text", MEANT)
def test_a_text_means_its_layers(text: str) -> None:
    plan = parse_plan(text, ["A", "B"])
    assert [(sources, plan.making(k)) for k, sources in enumerate(plan.layers)] == MEANT[text]


@pytest.mark.parametrize("text", MEANT)
def test_a_plan_is_read_back_from_text_json_and_file(text: str, tmp_path: Path) -> None:
    plan = parse_plan(text, ["A", "B"])
    assert parse_plan(format_plan(plan, ["A", "B"]), ["A", "B"]) == plan
    assert plan_from_json(json.loads(json.dumps(plan.to_json()))) == plan
    (tmp_path / "edit.json").write_text(json.dumps({"layers": plan.to_json()}))
    assert plan_of_file(str(tmp_path / "edit.json"), ["A", "B"], "") == plan


def test_a_file_that_is_no_json_is_named_and_a_long_text_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "plan.txt").write_text("A0, B1")
    with pytest.raises(UsageError, match=r"plan\.txt is a file: expected a plan as text .* or a \.json file"):
        plan_of_file(str(tmp_path / "plan.txt"), ["A", "B"], "")
    assert plan_of_file(str(tmp_path / "absent.txt"), ["A", "B"], "") is None
    assert plan_of_file(", ".join(["mean(0.25*A1, 0.75*A2)"] * 40), ["A", "B"], "") is None


def test_one_model_needs_no_name() -> None:
    assert parse_plan("0-1, mean(2, 3), 5*2", ["A"]) == parse_plan("A[0-1], mean(A2, A3), A[5]*2", ["A"])
    assert parse_plan("none", ["A"]) == LayerPlan.none()


# The text, the place of the caret, and the words.
MISTAKES = {
    "A[0-3], A[], B[5]": (10, "expected the number of a layer, found ']'"),
    "A[0-3] B[5]": (7, "expected a comma between layers, or the end, found 'B'"),
    "A[0-3": (5, "expected a comma or a closing bracket ], found the end"),
    "C[0]": (0, "there is no model 'C'; the models are A, B"),
    "A[0], $": (6, "unexpected character '$'"),
    "A[0]*0": (5, "1 to 10000 layers by repetition"),
    "A[0]*99999": (5, "1 to 10000 layers by repetition"),
    "affine(A5->A2)": (7, "to a later state of it"),
    "affine(A2, A5)": (9, "expected an arrow"),
    "laco(A1, B1)": (0, "laco(...) collapses layers of one model"),
    "zero(0.5*A1)": (5, "only mean(...) takes weights"),
    "mean(0.5*A1, A2)": (13, "either every layer of a mean has a weight, or none"),
    "mean(0*A1)": (0, "of a sum other than 0"),
    "A[3]-fnn": (5, "expected a sublayer (attention, cross, ffn, norm), found 'fnn'"),
    "A[3]-": (5, "expected a sublayer (attention, cross, ffn, norm), found the end"),
    "A[3]-ffn-ffn": (9, "found 'ffn' twice"),
    "A[3]-norm": (4, "a norm is removed with the sublayer before it"),
    "A[3-ffn]": (3, "expected a comma or a closing bracket ], found '-'"),
    "merge(A1, B1)": (
        0,
        "merge(...) belongs to a recipe of merge-models; here are mean(...), laco(...), zero(...), affine(...)",
    ),
    "A0, sum(A1, B1)": (4, "sum(...) is not known"),
    "mean(A1, A2)-ffn": (12, "only copies of layers lose a sublayer"),
    "A[0.5]": (2, "expected the number of a layer, found '0.5'"),
    "A[1234567]": (2, "expected the number of a layer"),
    "A0,": (3, "expected a model (A, B), found the end"),
    "": (0, "expected a model (A, B), found the end"),
    "3": (0, "expected a model (A, B), found '3'"),
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_shown_with_a_caret_under_its_place(text: str) -> None:
    place, words = MISTAKES[text]
    with pytest.raises(PlanSyntaxError) as caught:
        parse_plan(text, ["A", "B"])
    message, shown, caret = str(caught.value).split("\n")
    assert words in message
    assert (shown[2:], caret) == (text, "  " + " " * place + "^")


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ("A", "a list of layers"),
        ([{"layer": 0}], "layer 0: expected"),
        ([{"from": [{"model": -1, "layer": 0}]}], "a source is"),
        ([{"from": [{"layer": 0}], "made": "sum"}], "made is one of"),
        ([{"from": [{"layer": 0}], "made": "affine"}], "two rising numbers"),
        ([{"from": [{"layer": 0}], "made": "without"}], "names one of attention, cross, ffn"),
        ([{"from": [{"layer": 0}], "made": "without", "without": ["fnn"]}], "found fnn"),
        ([{"from": [{"layer": 0}], "made": "without", "without": "ffn"}], "without a list of sublayers"),
        ([{"from": [{"layer": 0}], "made": "zero", "without": ["ffn"]}], "names one of attention, cross, ffn"),
        ([{"from": [{"layer": 0}], "mad": "mean"}], "layer 0: expected"),
    ],
)
def test_json_that_is_no_plan_is_refused(entries: object, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        plan_from_json(entries)
