"""Figures show the record's numbers where they belong, and the same record gives the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from PIL import Image
from quick import quick_on

from evals.report import barrier_figure as plots
from evals.report.barrier_figure import barrier_figure, barrier_plot
from evals.report.hans_figure import hans_figure, hans_plot
from evals.report.svg import fraction_range, inline_svg
from evals.report.tables import GOLDS
from merge.errors import TaskError
from merge.publish import figures

pytestmark = pytest.mark.usefixtures("all_drawn")
LAM = [i / 10 for i in range(11)]
# The thirty subcases of HANS, in the order of its file.
SUBCASES = [
    "ln_subject/object_swap",
    "ln_preposition",
    "ln_relative_clause",
    "ln_passive",
    "ln_conjunction",
    "le_relative_clause",
    "le_around_prepositional_phrase",
    "le_around_relative_clause",
    "le_conjunction",
    "le_passive",
    "sn_NP/S",
    "sn_PP_on_subject",
    "sn_relative_clause_on_subject",
    "sn_past_participle",
    "sn_NP/Z",
    "se_conjunction",
    "se_adjective",
    "se_understood_object",
    "se_relative_clause_on_obj",
    "se_PP_on_obj",
    "cn_embedded_under_if",
    "cn_after_if_clause",
    "cn_embedded_under_verb",
    "cn_disjunction",
    "cn_adverb",
    "ce_embedded_under_since",
    "ce_after_since_clause",
    "ce_embedded_under_verb",
    "ce_conjunction",
    "ce_adverb",
]


def curve(name: str, height: float, first: float = 0.48, last: float = 0.61) -> dict[str, Any]:
    """Return a curve whose barrier is `height` at λ = 0.5, because the bump is added to the straight line itself."""
    bump = [1 - (2 * x - 1) ** 2 for x in LAM]
    return {
        "name": name,
        "lam": LAM,
        "loss": [(1 - x) * first + x * last + height * y for x, y in zip(LAM, bump, strict=True)],
        "accuracy": [0.84 - 0.02 * x - 0.3 * height * y for x, y in zip(LAM, bump, strict=True)],
        "barrier": max(height, 0.0),
        "barrier_lam": 0.5 if height > 0 else 0.0,
        "epsilon": max(height, 0.0),
        "convexity_gap": max(height, 0.0),
        "convexity_interval": [0.0, 0.5, 1.0],
        "standard_error": 0.0121,
    }


def barrier(*curves: dict[str, Any], a: str = "models/a/", b: str = "models/b/") -> dict[str, Any]:
    return {
        "kind": "barrier",
        "key": "mnli a b",
        "task": "mnli",
        "split": "validation_matched",
        "data": "GLUE, validation file",
        "n": 9815,
        "a": {"name": a, "hash": "3f" * 32},
        "b": {"name": b, "hash": "4e" * 32},
        "curves": list(curves) or [curve("naive", 1.1), curve("aligned (activations; heads, ffn)", 0.21)],
    }


def hans(name: str = "a/", seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    accuracy = {name: float(rng.beta(8, 1) if name[1] == "e" else rng.beta(1, 4)) for name in SUBCASES}
    table = {"accuracy": float(np.mean(list(accuracy.values()))), "heuristics": {}, "subcases": accuracy}
    return {"kind": "scores", "key": f"hans {name}", "model": {"name": name, "hash": f"{seed:064x}"}, "hans": table}


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text)]


def boxes(figure: Figure, chosen: list[Text]) -> np.ndarray:
    """Return x0, y0, x1, y1 of every text as drawn, in pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array([text.get_window_extent(canvas.get_renderer()).extents for text in chosen])


def overlaps(extents: np.ndarray) -> int:
    """Return how many pairs of boxes share area."""
    low, high = extents[:, None, :2], extents[:, None, 2:]
    common = np.minimum(high, extents[None, :, 2:]) - np.maximum(low, extents[None, :, :2])
    return int(np.triu((common > 0.5).all(axis=2), k=1).sum())


@pytest.mark.parametrize(
    "draw",
    [
        lambda stem: barrier_plot(barrier(), stem),
        pytest.param(lambda stem: hans_plot([hans()], stem), marks=pytest.mark.slow),
    ],
    ids=["barrier", "hans"],
)
def test_the_same_record_gives_the_same_bytes(tmp_path: Path, draw: Any) -> None:
    """A figure under version control changes only with its numbers, whatever the user's own style says."""
    first = [path.read_bytes() for path in draw(tmp_path / "first")]
    with matplotlib.rc_context({"axes.linewidth": 4, "legend.fontsize": 20, "svg.hashsalt": None}):
        second = [path.read_bytes() for path in draw(tmp_path / "second")]
    assert first == second
    assert b"<dc:date>" not in first[1]


def test_the_axis_of_a_share_ends_at_one_and_at_zero() -> None:
    """A margin beyond is room for a marker; a correlation below 0 keeps its axis."""
    figure = Figure()
    ends = []
    for values in ([1.0, 1.0], [0.0, 1.0], [-0.2, 0.1]):
        axes = figure.add_subplot()
        axes.plot(values)
        axes.margins(y=0.3)
        fraction_range(axes)
        ends.append(axes.get_ylim())
    (low, high), both, below = ends
    assert low < 1 < high < 1.01
    assert both == pytest.approx((-0.039, 1.03117))  # 3 % of 1.3, and of what is below 1
    assert below == pytest.approx((-0.29, 0.19))


@pytest.mark.slow
def test_another_number_gives_other_bytes(tmp_path: Path) -> None:
    """The control of the test above: a change in the last shown digit of one barrier reaches both files."""
    first = [path.read_bytes() for path in barrier_plot(barrier(curve("naive", 1.1)), tmp_path / "first")]
    second = [path.read_bytes() for path in barrier_plot(barrier(curve("naive", 1.1001)), tmp_path / "second")]
    assert first[0] != second[0]
    assert first[1] != second[1]


def test_the_png_decodes_to_the_size_of_its_figure(tmp_path: Path) -> None:
    """Both files keep a stem with a dot, and the picture has ink on it."""
    png, svg = barrier_plot(barrier(), tmp_path / "deep" / "mnli.v1")
    assert (png.name, svg.name) == ("mnli.v1.png", "mnli.v1.svg")
    with Image.open(png) as image:
        image.load()
        width, height = barrier_figure(barrier()).get_size_inches()
        assert image.size == (round(width * figures.DPI), round(height * figures.DPI)) == (1440, 645)
        colours = image.convert("RGB").crop((100, 120, 700, 500)).getcolors(maxcolors=600 * 380)
        assert len(colours) > 10
    assert svg.read_text(encoding="utf-8").startswith("<?xml")


def test_both_panels_hold_every_curve() -> None:
    """Loss left, accuracy right, the points those of the record, against the same λ."""
    record = barrier()
    figure = barrier_figure(record)
    loss, accuracy = figure.axes
    assert (loss.get_ylabel(), accuracy.get_ylabel()) == ("loss", "accuracy")
    for axes, name in ((loss, "loss"), (accuracy, "accuracy")):
        assert axes.get_xlabel() == "λ (0 = a, 1 = b)"
        drawn = [line.get_xydata().tolist() for line in axes.lines if len(line.get_xydata()) == len(LAM)]
        assert drawn == [[list(p) for p in zip(LAM, one[name], strict=True)] for one in record["curves"]]


def test_the_ends_are_marked_and_joined_by_a_dashed_line() -> None:
    """The barrier is measured from the line that joins the ends, so that line must be the one drawn."""
    record = barrier(curve("naive", 1.1))
    for axes, name in zip(barrier_figure(record).axes, ("loss", "accuracy"), strict=True):
        values = record["curves"][0][name]
        ends = [line for line in axes.lines if line.get_xydata().tolist() == [[0, values[0]], [1, values[-1]]]]
        assert sorted((line.get_linestyle(), line.get_marker()) for line in ends) == [("--", "None"), ("None", "o")]


def test_each_gap_runs_from_the_straight_line_to_its_curve() -> None:
    """Barrier = L(λ) - [(1-λ) L(0) + λ L(1)] at its largest: the arrow's ends are these two heights, by construction."""
    record = barrier()
    arrows = [
        text for text in barrier_figure(record).axes[0].texts if isinstance(text, Annotation) and text.arrow_patch
    ]
    assert len(arrows) == 2
    for arrow, one in zip(arrows, record["curves"], strict=True):
        top, bottom = arrow.xy[1], arrow.xyann[1]
        assert bottom == pytest.approx((one["loss"][0] + one["loss"][-1]) / 2, abs=1e-10)
        assert top == pytest.approx(one["loss"][5], abs=1e-10)
        assert arrow.xy[0] == arrow.xyann[0] == pytest.approx(0.5, abs=0.02)


def test_a_curve_without_a_barrier_has_no_gap() -> None:
    """A path that sags is below its line everywhere; there is nothing to mark, and the legend still says 0."""
    figure = barrier_figure(barrier(curve("naive", -0.1)))
    assert not figure.axes[0].texts
    assert "naive: barrier 0.0000" in "".join(texts(figure))
    assert "naive: barrier 0.0000 ±" not in "".join(texts(figure))
    bounded = {**curve("naive", -0.1), "barrier_interval": {"low": 0.0, "high": 0.0121}}
    assert "naive: barrier 0.0000 [0.0000, 0.0121]" in "".join(texts(barrier_figure(barrier(bounded))))


@pytest.mark.parametrize(
    "heights", quick_on([(1.1, 0.01)], [(1.1, 0.21), (0.012, 0.006), (1.1, 0.01), (0.3, 0.3, 0.02)])
)
def test_texts_of_a_barrier_figure_stay_apart_and_inside(heights: tuple[float, ...]) -> None:
    """Gap labels, titles and legend are read, not guessed: no two overlap and none is cut off."""
    name = "runs/bert-base-uncased-seed-00017-learning-rate-2e-5/checkpoint-36813/"
    figure = barrier_figure(barrier(*(curve(f"curve {i}", h) for i, h in enumerate(heights)), a=name, b=name))
    shown = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    extents = boxes(figure, shown)
    width, height = figure.get_size_inches() * figure.dpi
    assert len(shown) == 7 + 2 * len(heights)
    assert (extents[:, :2] >= -1).all()
    assert (extents[:, 2:] <= [width + 1, height + 1]).all()
    labels = [text for text in figure.axes[0].texts if text.get_text()]
    assert len(labels) == len(heights)
    assert overlaps(boxes(figure, labels)) == 0
    assert overlaps(np.array([[0, 0, 10, 10], [5, 5, 15, 15], [20, 0, 30, 10]])) == 1


def test_long_names_of_curves_are_in_one_column_and_inside() -> None:
    """As a line with re-fitted heads has them; short ones are in two columns (the control: these would be cut off in two)."""
    long = [{**curve("aligned (activations; residual, heads, ffn, pooler), head re-fitted", 0.1)} for _ in range(4)]
    for each in long:
        each["barrier_interval"], each["calibrated_barrier"] = {"low": 0.0123, "high": 0.4567}, 0.0789
    figure = barrier_figure(barrier(*long))
    legend = figure.legends[0].get_texts()
    extents = boxes(figure, legend)
    assert (extents[:, 0] >= 0).all()
    assert (extents[:, 2] <= figure.get_size_inches()[0] * figure.dpi).all()
    assert len(set(extents[:, 0].round())) == 1
    short = barrier_figure(barrier(curve("naive", 0.1), curve("aligned", 0.1)))
    assert len(set(boxes(short, short.legends[0].get_texts())[:, 0].round())) == 2


def test_hans_groups_the_thirty_subcases_by_heuristic_and_gold() -> None:
    """Six headings, each over its five subcases, whatever order the record has."""
    record = hans()
    record["hans"]["subcases"] = dict(sorted(record["hans"]["subcases"].items(), key=lambda item: item[0][::-1]))
    axes = hans_figure([record]).axes[0]
    headings = sorted((text.get_position()[1], text.get_text()) for text in axes.texts)
    expected = [f"{h}, {g}" for h in ("lexical overlap", "subsequence", "constituent") for g in GOLDS.values()]
    assert [name for _, name in headings] == expected
    ticks = dict(zip(axes.get_yticks(), (label.get_text() for label in axes.get_yticklabels()), strict=True))
    assert len(ticks) == 30
    for (place, _), prefix in zip(headings, ("le", "ln", "se", "sn", "ce", "cn"), strict=True):
        below = {ticks[place + i] for i in range(1, 6)}
        assert below == {name[3:].replace("_", " ") for name in SUBCASES if name.startswith(prefix)}


def test_hans_dots_stand_at_the_accuracies() -> None:
    """Thirty dots a model, each at its own accuracy in its own row, and a line at chance."""
    records = [hans(f"{seed}/", seed) for seed in range(3)]
    axes = hans_figure(records).axes[0]
    rows = dict(zip((label.get_text() for label in axes.get_yticklabels()), axes.get_yticks(), strict=True))
    *dots, chance = axes.lines
    assert list(chance.get_xdata()) == [0.5, 0.5]
    assert len(dots) == 3
    for line, record in zip(dots, records, strict=True):
        table = record["hans"]["subcases"]
        np.testing.assert_array_equal(line.get_xdata(), list(table.values()))
        unique = [i for i, name in enumerate(table) if sum(n[3:] == name[3:] for n in table) == 1]
        assert len(unique) > 15
        for i in unique:
            row = rows[list(table)[i][3:].replace("_", " ")]
            assert abs(line.get_ydata()[i] - row) < 0.35


@pytest.mark.parametrize("count", quick_on((6,), [1, 6, 40]))
def test_hans_labels_stay_apart_and_inside(count: int) -> None:
    """Thirty rows and six headings are readable only if none covers another."""
    figure = hans_figure([hans(f"models/bert-base-uncased-seed-{seed:05d}/", seed) for seed in range(count)])
    axes = figure.axes[0]
    legend = figure.legends[0].get_texts()
    shown = [*axes.get_yticklabels(), *axes.texts, *legend]
    extents = boxes(figure, shown)
    width, height = figure.get_size_inches() * figure.dpi
    assert len(shown) == 36 + len(legend) + (3 * 31 if count > 6 else 0)
    assert overlaps(extents) == 0
    assert (extents[:, :2] >= -1).all()
    assert (extents[:, 2:] <= [width + 1, height + 1]).all()


def test_many_models_become_a_cloud_with_its_range_and_median() -> None:
    """A hundred colours tell nobody apart; worst, middle and best are what one looks for, drawn and in figures."""
    records = [hans(f"{seed}/", seed) for seed in range(41)]
    axes = hans_figure(records).axes[0]
    *clouds, median, _ = axes.lines
    assert len(clouds) == 41
    values = np.array([[record["hans"]["subcases"][name] for name in SUBCASES] for record in records])
    expected = np.percentile(values, [0, 50, 100], axis=0).T
    drawn = dict(zip(median.get_ydata(), median.get_xdata(), strict=True))
    np.testing.assert_allclose(sorted(drawn.values()), sorted(expected[:, 1]), rtol=0, atol=1e-10)
    # Bands and figures stand in the row of their own median.
    assert len(axes.patches) == 30
    written: dict[float, list[str]] = {}
    for text in axes.texts:
        if isinstance(text, Annotation):
            written.setdefault(text.xy[1], []).append(text.get_text())
    assert written.pop(0) == ["min", "med.", "max"]
    found = []
    for band in axes.patches:
        low, high, place = band.get_x(), band.get_x() + band.get_width(), band.get_y() + band.get_height() / 2
        row = min(drawn, key=lambda y: abs(y - place))
        found.append((low, drawn[row], high))
        assert written[row] == [f"{value:.2f}" for value in found[-1]]
    np.testing.assert_allclose(sorted(found), sorted(map(tuple, expected)), rtol=0, atol=1e-10)
    assert hans_figure(records).legends[0].get_texts()[0].get_text() == "41 models"
    assert not hans_figure(records[:6]).axes[0].patches  # few models are told apart instead


def test_a_subcase_that_no_model_has_a_score_of_is_a_dash() -> None:
    """Many broken models are drawn all the same: no band, no dot, and – for each figure."""
    records = [hans(f"{seed}/", seed) for seed in range(8)]
    for record in records:
        record["hans"]["subcases"]["ln_passive"] = None
    figure = hans_figure(records)
    boxes(figure, [])
    assert texts(figure).count("–") == 3


def test_subcases_of_another_grammar_are_shown_as_other() -> None:
    """A set with its own subcases loses none of them for lack of HANS's prefixes."""
    record = hans()
    record["hans"]["subcases"] = {"ln_passive": 0.1, "negation": 0.2, "xx_new": 0.3}
    axes = hans_figure([record]).axes[0]
    assert [text.get_text() for text in axes.texts] == ["lexical overlap, non-entailment", "other"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["passive", "negation", "xx new"]


def test_names_are_drawn_as_they_are_written() -> None:
    """A dollar sign starts no formula and a leading underscore hides no model."""
    names = ["_hidden/", "a$b$c/", "x_{1}/"]
    figure = hans_figure([hans(name, seed) for seed, name in enumerate(names)])
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert [label.partition("  ")[2] for label in legend[:3]] == names
    assert not any(text.get_parse_math() for text in figure.findobj(Text) if "$" in text.get_text())
    assert any("$" in text for text in texts(figure))


def test_without_a_hans_table_there_is_nothing_to_draw() -> None:
    """An empty picture would look like a result."""
    with pytest.raises(TaskError, match="no HANS table to draw"):
        hans_figure([{"kind": "scores", "model": {"name": "a/"}}])


def test_an_inline_figure_has_ids_of_its_own_and_no_address() -> None:
    """Inside HTML an <svg> needs no namespace address, and its ids must not meet those of the next figure."""
    figure = barrier_figure(barrier(a="--><script>"))
    text = inline_svg(figure, "first", 'a "quoted" <label>')
    assert "://" not in text
    assert "<script" not in text
    assert "<!--" not in text
    assert 'aria-label="a &quot;quoted&quot; &lt;label&gt;"' in text
    assert 'id="first-' in text
    assert 'href="#first-' in text
    assert "currentColor" in text
    assert figures.INK not in text
    # The control: what matplotlib writes does hold addresses and comments.
    raw = figures.rendered(figure, "svg").decode()
    assert "://" in raw
    assert "<!--" in raw


@pytest.mark.slow
def test_drawing_leaves_no_trace_in_pyplot_or_the_settings(tmp_path: Path) -> None:
    """A library that is called from a notebook must neither open windows nor restyle the user's own plots."""
    code = """
import sys
from pathlib import Path
import matplotlib
import test_barrier_figure as t

def settings():  # reading the backend would itself load pyplot
    return {name: matplotlib.rcParams[name] for name in matplotlib.rcParams if name != "backend"}

before = settings()
t.barrier_plot(t.barrier(), Path(sys.argv[1], "p"))
t.hans_plot([t.hans()], Path(sys.argv[1], "h"))
print(settings() == before, "matplotlib.pyplot" in sys.modules)
"""
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2]), str(Path(plots.__file__).parents[2])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True False"
    assert len(list(tmp_path.iterdir())) == 4
