"""Tables, figures and sentences of studies of edited models, from records with known numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from evals.report.surgery.lesion_figures import lesion_figures
from evals.report.surgery.linearity_figures import linearity_figures
from evals.report.surgery.tables import correlation, grouped_rows, lesion_tables, linearity_tables, variant_rows
from evals.report.surgery.verdict import span, verdict_lines
from evals.report.table_text import plain_table

pytestmark = pytest.mark.usefixtures("all_drawn")


def variant(part: str, at: float, score: float, kind: str = "", layers: tuple[int, ...] = (0,)) -> dict[str, Any]:
    change = {"change": 1 - score, "standard_error": 0.1}
    return {"part": part, "kind": kind, "name": f"{part} {at:g} {kind}", "layers": list(layers), "at": at, **change} | {
        "scores": {"accuracy": score, "loss": 1 - score}
    }


def record(kind: str, variants: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    check = {"rows": 8, "variants": 3, "largest": 0.0, "cached_seconds": 1.0, "full_seconds": 2.0}
    return {
        "kind": kind, "key": f"{kind}-0", "task": "mnli", "split": "dev", "data": "rows", "n": 9, "layers": 3,
        "models": [{"name": "m"}], "scores": ["accuracy", "loss"], "compared": "loss", "whole": {"accuracy": 0.9, "loss": 0.1},
        "floor": {"name": "the most frequent class", "scores": {"accuracy": 0.33, "loss": 1.1}}, "variants": variants,
        "cost": {"layer_passes": 6, "full_layer_passes": 12, "seconds": 3.0, "check": check}, "notes": [], "paths": None,
    } | more  # fmt: skip


LESION = record(
    "lesion",
    [
        variant("floor", 3, 0.4, layers=(0, 1, 2)),
        *(variant("layers", k, score, "dropped", (k,)) for k, score in enumerate((0.8, 0.85, 0.5))),
        *(variant("sublayers", k, 0.7, kind) for k in range(3) for kind in ("attention, norm kept", "ffn, norm bypassed")),
        *(variant("duplicates", k, 0.88) for k in range(3)),
        *(variant("random", 2, score, layers=(0, 1)) for score in (0.5, 0.6, 0.7)),
        *(variant("orders", tau, 0.5 + 0.3 * tau) for tau in (-1.0, -1 / 3, 1 / 3, 1.0)),
    ],
    paths={
        "counts": [1, 4, 6, 4, 1], "norms": [8.0, 4.0, 1.0, 0.5, 0.25], "drawn": [1, 2, 2, 2, 1], "whole": 9.0, "texts": 4,
        "objective": "the loss", "shares": [8 / 32.25, 16 / 32.25, 6 / 32.25, 2 / 32.25, 0.25 / 32.25],
    },
)  # fmt: skip
COMPONENTS = ("attention", "attention + skip", "ffn", "ffn + skip", "layer")
LINEARITY = record(
    "linearity",
    [
        variant("floor", 3, 0.4, layers=(0, 1, 2)),
        *(variant("replace", k, 0.8, f"{name}, one", (k,)) for k in range(3) for name in ("attention", "ffn", "layer")),
        *(variant("replace", k, 0.7, f"{n}, from the front") for k in (2, 3) for n in ("attention", "ffn", "layer")),
        *(variant("replace", 2, 0.6, f"{n}, from the back") for n in ("attention", "ffn", "layer")),
        *(variant("remove", k, 0.5, f"{name}, one", (k,)) for k in range(3) for name in ("attention", "ffn", "layer")),
        variant("swaps", 0, 0.9, layers=()),
        *(variant("swaps", d, score) for d, score in ((1, 0.85), (1, 0.75), (2, 0.5))),
        variant("reversals", 3, 0.5),
        *(variant("shuffles", k, 0.6, "k layers fixed") for k in (2, 3)),
    ],
    fit="closed", tokens=100, held_out=25,
    components=[
        {"layer": k, "component": name, "nonlinearity": 0.1 * (1 + at), "r2": 0.9, "error_norm": 0.2, "of_mean": 0.5, "size": 1.5}
        | {"of_skip": 0.3 if "skip" in name or name == "layer" else None}
        for k in range(3) for at, name in enumerate(COMPONENTS)
    ],
    tuned=[{**variant("tuned", 0, 0.95), "training_loss": 0.2}],
)  # fmt: skip


def test_tables_of_a_lesion_study_have_every_number_in_its_place() -> None:
    tables = lesion_tables(LESION)
    assert list(tables) == ["scores", "layers", "random", "orders", "paths"]
    assert tables["scores"][1:] == [
        ["the whole model", 0.9, 0.1], ["no layers", 0.4, 0.6], ["the most frequent class (no skill)", 0.33, 1.1],
    ]  # fmt: skip
    header, first, *_ = tables["layers"]
    assert header == [
        "layer: accuracy",
        "dropped",
        "without attention, norm kept",
        "without ffn, norm bypassed",
        "twice",
    ]
    assert first == ["0", 0.8, 0.7, 0.7, 0.88]
    assert tables["random"][1] == ["2", 3, pytest.approx(0.6), 0.5, 0.7]
    assert [row[0] for row in tables["orders"][1:]] == [
        "-1 to -0.3",
        "0.3 to 0.6",
        "0.6 to 1",
        "correlation of tau and score",
    ]
    assert tables["orders"][-1][2] == pytest.approx(1.0)
    assert tables["paths"][2][:5] == ["1", 4, 4 / 16, 4.0, 16 / 32.25]
    assert len(variant_rows(LESION)) == 1 + len(LESION["variants"])


def test_tables_of_a_linearity_study_have_every_number_in_its_place() -> None:
    tables = linearity_tables(LINEARITY)
    assert len(tables) == 12
    assert tables["nonlinearity"][1] == ["0", *(pytest.approx(0.1 * k) for k in range(1, 6))]
    assert tables["swaps"][1:] == [
        ["0", 1, 0.9, 0.9, 0.9],
        ["1", 2, pytest.approx(0.8), 0.75, 0.85],
        ["2", 1, 0.5, 0.5, 0.5],
    ]
    assert tables["baselines"][0][-3:] == [f"{n}: the input alone" for n in ("attention + skip", "ffn + skip", "layer")]
    assert tables["baselines"][1][-3:] == [0.3] * 3
    cumulative = tables["cumulative"]
    assert [row[0] for row in cumulative[1:]] == ["2", "3"]
    assert cumulative[2][1:3] == [0.7, 0.7]  # all layers are the same model from either end
    assert tables["shuffles"][1][0] == "0"
    assert tables["tuned"][1][-1] == 0.2


def test_a_part_that_was_left_out_has_no_table_and_no_figure() -> None:
    bare = record("lesion", [variant("floor", 3, 0.4)])
    assert list(lesion_tables(bare)) == ["scores"]
    assert lesion_figures(bare) == {}
    assert verdict_lines(bare) == []
    assert linearity_figures(record("linearity", [variant("floor", 3, 0.4)], components=[])) == {}


def test_every_panel_of_scores_has_the_whole_model_the_floor_and_no_skill_drawn_in() -> None:
    drawn = {**lesion_figures(LESION), **linearity_figures(LINEARITY)}
    assert list(drawn) == ["layers", "orders", "paths", "components", "replaced", "commutativity"]
    for name in ("layers", "orders", "replaced", "commutativity"):
        panels = drawn[name][0].get_axes()
        assert len(panels) >= 2
        for axes in panels:
            levels = {
                float(np.ravel(line.get_ydata())[0]) for line in axes.get_lines() if len(set(line.get_ydata())) == 1
            }
            assert levels >= {0.9, 0.4, 0.33}, name
    components = drawn["components"][0].get_axes()[1]
    assert [float(np.ravel(line.get_ydata())[0]) for line in components.get_lines()] == [pytest.approx(0.2), 0.5, 0.3]
    shares = drawn["paths"][0].get_axes()[2]
    assert list(shares.get_lines()[0].get_ydata()) == [count / 16 for count in (1, 4, 6, 4, 1)]


def test_sentences_name_the_layers_and_lengths() -> None:
    lines = verdict_lines(LESION)
    assert lines[0].startswith(
        "Of single layers, 2 matters most (accuracy 0.5000 without it, 0.9000 with all) and 1 least"
    )
    assert "correlate by 1.00" in lines[1]
    assert lines[2].startswith("90% of the summed gradient comes through paths of 0 to 2 sublayers, of 4")
    text = " ".join(verdict_lines(LINEARITY))
    assert "What the feed-forward part writes is the least linear" in text
    assert "Swapping neighbours leaves accuracy 0.8000 on average, swapping layers 2 apart 0.5000" in text


def test_spans_and_correlations() -> None:
    """Against numpy; a constant side has no correlation."""
    assert span([0.02, 0.6, 0.35, 0.03], 0.9) == (1, 2)
    assert span([0.0, 0.0], 0.9) == (0, 1)
    points = [(1.0, 2.0), (2.0, 1.0), (3.0, 5.0), (4.0, 3.0)]
    assert correlation(points) == pytest.approx(np.corrcoef(np.array(points).T)[0, 1])
    assert correlation([(1.0, 2.0), (2.0, 2.0), (3.0, 2.0)]) is None
    undefined = {**variant("random", 2, 0.5), "scores": {"accuracy": None, "loss": 1.0}}
    assert grouped_rows(LESION, [undefined], "")[1] == ["2", 0, None, None, None]


def test_tables_fit_a_terminal_with_all_words_of_their_headers() -> None:
    """The control is the same table without a width; rows stay one line each."""
    tables = [*lesion_tables(LESION).values(), *linearity_tables(LINEARITY).values()]
    wide = [max(map(len, plain_table(rows).splitlines())) for rows in tables]
    assert max(wide) > 100
    for rows in tables:
        text = plain_table(rows, 80).splitlines()
        header = text[: len(text) - len(rows) + 1]
        assert max(map(len, text)) <= 80
        assert sorted(" ".join(header).split()) == sorted(" ".join(map(str, rows[0])).split())
        numbers = [line.split() for line in text[len(header) :]]
        assert numbers == [line.split() for line in plain_table(rows).splitlines()[1:]]


def test_axes_of_fractions_end_at_one_and_of_losses_do_not() -> None:
    whole = {"whole": {"accuracy": 1.0, "loss": 1.0}}
    for score, bounded in (("accuracy", True), ("loss", False)):
        figure, _ = lesion_figures(LESION | whole | {"scores": [score]})["layers"]
        tops = {axes.get_ylim()[1] for axes in figure.axes}
        assert len(tops) == 1
        assert (max(tops) < 1.04) == bounded
