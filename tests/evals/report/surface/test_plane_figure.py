"""The names of marks on a plane: none covers another, and the ends of a run and the average come first."""

from __future__ import annotations

import itertools
import random

from evals.report.surface.plane_figure import NAME_SIZE, name_places, names_of

PANEL = (300.0, 200.0)


def test_marks_that_are_apart_all_have_names_inside_the_panel() -> None:
    places = [(40.0, 40.0), (290.0, 40.0), (150.0, 195.0), (150.0, 90.0)]
    kept = name_places(places, ["head0-order0", "head1-order0", "head2-order0", "average"], PANEL)
    assert sorted(kept) == [0, 1, 2, 3]
    assert kept[0][0] > 0 > kept[1][0]  # to the left where there is no room to the right
    assert kept[2][1] < 0


def test_of_marks_on_one_another_the_last_checkpoint_has_a_name() -> None:
    places = [(20.0, 20.0), (200.0, 100.0), (202.0, 101.0), (120.0, 60.0)]
    assert sorted(name_places(places, ["c-1", "c-2", "c-3", "average"], PANEL)) == [0, 2, 3]


def test_no_name_covers_another() -> None:
    numbers = random.Random(0)
    for _ in range(20):
        places = [(numbers.uniform(0, 300), numbers.uniform(0, 200)) for _ in range(12)]
        kept = name_places(places, ["checkpoint"] * 12, PANEL)
        width = 0.62 * NAME_SIZE * len("checkpoint")
        corners = [(places[at][0] + dx, places[at][1] + dy) for at, (dx, dy) in kept.items()]
        assert len(corners) > 3
        for (x, y), (u, v) in itertools.combinations(corners, 2):
            assert abs(x - u) >= width or abs(y - v) >= NAME_SIZE


def test_names_are_without_their_folder_where_they_differ_without_it() -> None:
    assert names_of([{"name": "run/checkpoint-1"}, {"name": "run/checkpoint-2/"}]) == ["checkpoint-1", "checkpoint-2"]
    assert names_of([{"name": "a/model"}, {"name": "b/model"}]) == ["a/model", "b/model"]
