"""The pictures of basins show the record's numbers where they belong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform

from evals.report.basins.heatmap import heatmap_figure
from evals.report.basins.pair_curves import curves_figure
from evals.report.basins.prediction import prediction_figure
from evals.report.basins.scatter import Axis, scatter_figure, spread
from merge.publish.figures import COLOURS

pytestmark = pytest.mark.usefixtures("all_drawn")

NAMES = ["a", "b", "c", "d"]
# a and c share a basin, b and d another.
DISTANCES = np.array([[0, 0.9, 0.1, 0.8], [0.9, 0, 0.7, 0.2], [0.1, 0.7, 0, 0.6], [0.8, 0.2, 0.6, 0]])
CLUSTERS = [0, 1, 0, 1]


def heatmap(distances: Any = DISTANCES, tree: bool = True) -> Figure:
    links = linkage(squareform(DISTANCES), "average") if tree else None
    return heatmap_figure(NAMES, distances, links, CLUSTERS, "convexity gap")


@pytest.mark.parametrize("tree", [True, False])
def test_the_cells_of_the_heatmap_are_the_distances_of_the_models_beside_them(tree: bool) -> None:
    cells = heatmap(tree=tree).axes[1]
    order = [NAMES.index(label.get_text()) for label in cells.get_yticklabels()]
    assert sorted(order) == [0, 1, 2, 3]
    assert {frozenset(order[:2]), frozenset(order[2:])} == {frozenset({0, 2}), frozenset({1, 3})}
    shown = np.ma.filled(cells.images[0].get_array(), np.nan)
    expected = DISTANCES[np.ix_(order, order)] + np.diag([np.nan] * 4)
    np.testing.assert_array_equal(shown, expected)
    texts = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in cells.texts}
    assert len(texts) == 12
    assert all(float(texts[r, c]) == pytest.approx(expected[r, c], abs=0.005) for r, c in texts)


def test_a_pair_that_was_not_measured_has_no_number() -> None:
    distances = DISTANCES.copy()
    distances[0, 1] = distances[1, 0] = np.nan
    assert len(heatmap(distances).axes[1].texts) == 10


def test_a_branch_has_the_colour_of_a_cluster_where_all_its_leaves_are_of_it() -> None:
    tree = heatmap().axes[0]
    colours = sorted((max(line.get_ydata()), line.get_color()) for line in tree.lines)
    assert [colour for _, colour in colours[:2]] == [COLOURS[0], COLOURS[1]]
    assert colours[2][1] not in COLOURS
    assert colours[2][0] == pytest.approx(np.mean([0.9, 0.8, 0.7, 0.6]))


def test_the_scatter_leaves_out_models_without_a_score_and_no_others() -> None:
    figure = scatter_figure(NAMES, Axis("x", [1, 2, 3, 4]), Axis("y", [5, None, 7, 8]), CLUSTERS, ["one", "two"])
    axes = figure.axes[0]
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[1, 5], [3, 7]], [[4, 8]]]
    assert sorted(text.get_text() for text in axes.texts) == ["a", "c", "d"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 5], [0, 5]),
        ([1, 1], [0.5, 1.5]),
        ([0, 0, 0], [-1, 0, 1]),
        ([0, 0, 0.5, 9], [-5 / 6, 1 / 6, 7 / 6, 9]),
        ([], []),
    ],
)
def test_names_move_apart_as_little_as_they_must(values: list[float], expected: list[float]) -> None:
    """A block that is too dense is spread about its mean, which least squares keeps."""
    assert spread(values, 1) == pytest.approx(expected)


def test_curves_of_all_panels_share_one_height() -> None:
    lam = [0, 0.5, 1]
    low = {"name": "a → c", "loss": [0.1, 0.2, 0.1]}
    high = {"name": "a → b", "loss": [0.1, 0.9, None]}
    figure = curves_figure({"inside": [low], "between": [high]}, lam)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["inside", "between"]
    assert figure.axes[0].lines[0].get_ydata().tolist() == low["loss"]
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()


def test_the_line_of_equal_loss_covers_every_average() -> None:
    averages = [{"predicted": 0.2, "measured": 0.5, "count": 3}, {"predicted": 0.3, "measured": 0.1, "count": 5}]
    axes = prediction_figure(averages, {"all": averages[1]}).axes[0]
    *points, line = axes.lines
    assert [each.get_xydata().tolist() for each in points] == [[[0.2, 0.5]], [[0.3, 0.1]], [[0.3, 0.1]]]
    assert line.get_xydata().tolist() == [[0.1, 0.1], [0.5, 0.5]]
