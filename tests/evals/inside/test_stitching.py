"""Stitching penalties: sums against the rows, planted copies without penalty, controls, and how the command answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captured_log import CapturedLog
from safetensors.torch import load_file
from tiny import NLI, WORDS, bert_config, random_tensors, save_checkpoint, save_tokenizer, write_text

import evals
import merge
from evals.commands.basins import _text_of_stitches
from evals.inside import stitching
from evals.inside.state_sums import StateSums
from evals.inside.stitching import CONTROLS, StitchPlan, depth_cuts, fitted
from evals.report.inside.section import inside_figure, inside_tables
from evals.run.inside.stitch import fit_notes
from evals.run.inside.texts import Measured
from evals.tasks.task import Rows
from merge.checkpoints.inputs import encode, load_tokenizer
from merge.checkpoints.open import open_checkpoint
from merge.errors import CalibrationError, CheckpointError, MismatchError, TaskError, UsageError
from merge.layers.activations import live_layers, live_model, states_of
from merge.layers.repair.ridge import NormalEquations
from merge.layers.stitching.live import Halves, stitched
from merge.layers.stitching.maps import StateMap
from merge.layers.stitching.norms import norm_of_state, states_before_norms
from merge.text.source import TextSource

CONFIG = bert_config(num_hidden_layers=2)
WIDE = bert_config(num_hidden_layers=2, intermediate_size=48)  # as a layer that holds a map needs it


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stitching")
    for seed, name in enumerate("ab"):
        save_checkpoint(folder / name, CONFIG, seed)
    save_checkpoint(folder / "wide", WIDE, 1)
    write_text(folder / "text.txt", 60)
    rows = [
        {"premise": f"the {WORDS[2 + k % 5]} saw a lawyer .", "hypothesis": "a lawyer helped .", "label": NLI[k % 3]}
        for k in range(24)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_sums_are_those_of_the_rows(store: Path) -> None:
    """CKA and R2 of a map from sums, and the same from all rows; reversed sums are those of swapped models.

    Sums of states that were read before their norms are the same.
    """
    models = [open_checkpoint(str(store / name)) for name in "ab"]
    a, b = (live_layers(live_model(model)) for model in models)
    texts = [(line,) for line in (store / "text.txt").read_text().splitlines()]
    batches = encode(load_tokenizer(store / "a"), texts, 32).batches
    sums = StateSums([(1, 2)]).read(a, b, batches)
    x, y = (
        torch.cat([states_of(live, batch, [cut])[cut] for batch in batches]).double() for live, cut in ((a, 1), (b, 2))
    )
    cx, cy = (z.numpy() - z.numpy().mean(0) for z in (x, y))
    due = np.linalg.norm(cx.T @ cy) ** 2 / (np.linalg.norm(cx.T @ cx) * np.linalg.norm(cy.T @ cy))
    assert abs(sums.cka((1, 2)) - due) < 1e-9
    swapped = StateSums([(2, 1)]).read(b, a, batches)
    maps = [fitted(sums, (1, 2), StitchPlan(), reverse=True), fitted(swapped, (2, 1), StitchPlan())]
    assert (maps[0].weight - maps[1].weight).abs().max() < 1e-9
    left, spread = ((x - maps[0](y)).square().sum(), (x - x.mean(0)).square().sum())
    assert abs(float(maps[0].explained or 0) - float(1 - left / spread)) < 1e-9
    norms = tuple(
        {cut: norm_of_state(model, cut, live) for cut in (1, 2)} for model, live in zip(models, (a, b), strict=True)
    )
    before = StateSums([(1, 2)], norms).read(a, b, batches)  # type: ignore[arg-type]
    assert abs(before.cka((1, 2)) - due) < 1e-6
    for reverse in (False, True):
        given, wanted = (each.equations((1, 2), reverse) for each in (before, sums))
        for name in ("xx", "xy", "y"):
            assert torch.allclose(getattr(given, name), getattr(wanted, name), atol=1e-4, rtol=1e-6)
        assert abs(given.yy - wanted.yy) < 1e-3


def with_dead_units(place: Path) -> Path:
    """Write model a of the store with a gain of 0 at the largest unit of what every norm of its layers writes."""
    model = open_checkpoint(str(save_checkpoint(place / "whole", WIDE, 0)))
    live = live_layers(live_model(model))
    batch = {"input_ids": torch.tensor([[2, 5, 7, 9, 3]]), "attention_mask": torch.ones(1, 5, dtype=torch.long)}
    tensors = model.state_dict()
    for state in (1, 2):
        unit = int(states_before_norms(live, batch, [state])[state].abs().mean(0).argmax())
        tensors[f"bert.encoder.layer.{state - 1}.output.LayerNorm.weight"][unit] = 0.0
    return save_checkpoint(place / "dead", WIDE, tensors=tensors)


def test_a_norm_with_a_gain_of_zero_hides_no_unit_from_hooks_nor_from_a_written_layer(
    store: Path, tmp_path: Path
) -> None:
    """A norm's statistics need the unit that its gain hides: without it a model stitched to itself is not that model.

    Its normed states have mean 0, so the other units tell it, and the map can know it. Hooks and the written layer fit one map.
    """
    folder = with_dead_units(tmp_path)
    for other, at in ((folder, (2, 2)), (store / "wide", (1, 2)), (store / "wide", (1, 1))):
        models = [open_checkpoint(str(each)) for each in (other, folder)]
        a, b = (live_layers(live_model(model)) for model in models)
        batches = encode(
            load_tokenizer(folder), [(line,) for line in (store / "text.txt").read_text().splitlines()], 32
        ).batches
        norms = tuple(
            {cut: norm_of_state(model, cut, live) for cut in (1, 2)} for model, live in zip(models, (a, b), strict=True)
        )
        by_hooks = fitted(StateSums([at], norms).read(a, b, batches), at, StitchPlan("affine+norm", ridge=1e-3))
        made = merge.stitch(other, folder, at=at, map="affine+norm", ridge=1e-3, text=store / "text.txt")
        with torch.inference_mode(), stitched(Halves(a, b, at), by_hooks):
            hooked = b.model(**batches[0]).logits
        written = live_model(open_checkpoint(str(made.folder)))(**batches[0]).logits
        own = b.model(**batches[0]).logits
        assert (hooked - written).abs().max() < 1e-4
        if other == folder:
            assert (hooked - own).abs().max() < 1e-3
        else:
            assert (hooked - own).abs().max() > 1e-2


def test_random_weights_are_those_of_their_seed() -> None:
    """And drawing them leaves the generator of the process as it was."""
    before = torch.random.get_rng_state()
    one, again, other = (stitching.random_like(CONFIG, seed).model.state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    name = "bert.encoder.layer.1.output.dense.weight"
    assert torch.equal(one[name], again[name])
    assert not torch.equal(one[name], other[name])


def test_cuts_of_equal_depth() -> None:
    assert depth_cuts(3, 3) == ((0, 0), (1, 1), (2, 2), (3, 3))
    assert depth_cuts(6, 3) == ((0, 0), (2, 1), (4, 2), (6, 3))


def test_a_model_stitched_to_itself_has_no_penalty_and_its_controls_have(store: Path) -> None:
    measured = evals.stitch(store / "a", store / "a", text=store / "text.txt", line=False)
    cuts = measured.record["cuts"]
    assert [cut["at"] for cut in cuts] == [[0, 0], [1, 1], [2, 2]]
    for cut in cuts:
        assert set(cut["penalties"]) == {"stitched", *CONTROLS}
        for name in ("stitched", "identity", "reversed"):
            assert abs(cut["penalties"][name]) < 1e-4
        assert cut["penalties"]["mean only"] > 0.01
        assert cut["penalties"]["random A"] > 0.001
        assert abs(cut["cka"] - 1) < 1e-9


@pytest.mark.slow
def test_a_task_is_scored_and_all_pairs_make_a_matrix(store: Path) -> None:
    measured = evals.stitch(
        store / "a", store / "b", task="mnli", data=store / "rows.jsonl", text=store / "text.txt", all_pairs=True
    )
    record = measured.record
    own = evals.score(store / "b", "mnli", data=store / "rows.jsonl").records[0]["scores"]
    assert record["ends"]["b"]["accuracy"] == own["accuracy"]
    assert abs(record["ends"]["b"]["loss"] - own["loss"]) < 1e-5
    assert (len(record["matrix"]), len(record["matrix"][0])) == (3, 3)
    for cut in record["cuts"]:
        assert record["matrix"][cut["at"][0]][cut["at"][1]] == cut["penalties"]["stitched"]
        assert abs(cut["penalties"]["stitched"] - (own["accuracy"] - cut["scores"]["stitched"]["accuracy"])) < 1e-9
        back = record["ends"]["a"]["accuracy"] - cut["scores"]["reversed"]["accuracy"]
        assert abs(cut["penalties"]["reversed"] - back) < 1e-9
    barrier = evals.barrier(store / "a", store / "b", task="mnli", data=store / "rows.jsonl")
    assert record["barrier"]["barrier"] == barrier.curves["naive"]["barrier"]
    assert len(record["llfc"]) == 3
    assert len(inside_tables(record)) == 3
    assert len(inside_figure(record).axes) == 4


@pytest.mark.slow
def test_other_widths_and_depths_are_measured_without_a_line(store: Path, tmp_path: Path) -> None:
    wide = bert_config(hidden_size=36, intermediate_size=40, num_hidden_layers=3)
    save_checkpoint(tmp_path / "wide", wide, 3)
    measured = evals.stitch(tmp_path / "wide", store / "b", text=store / "text.txt")
    assert [cut["at"] for cut in measured.record["cuts"]] == [[0, 0], [2, 1], [3, 2]]
    assert "identity" not in measured.record["cuts"][0]["penalties"]
    assert any("no barrier and no LLFC" in note for note in measured.notes)


@pytest.mark.slow
def test_a_zoo_is_clustered_by_stitching(store: Path, tmp_path: Path, captured_log: CapturedLog) -> None:
    """Two copies that differ in a bias alone are at 0; an unrelated model is not; the second sweep reads what the first wrote."""
    tensors = random_tensors(CONFIG, 0)
    tensors["classifier.bias"] = tensors["classifier.bias"] + 0.01
    save_checkpoint(tmp_path / "near", CONFIG, tensors={name: tensor.float() for name, tensor in tensors.items()})
    given = {"task": "mnli", "data": store / "rows.jsonl", "points": 3, "processes": 1, "output": tmp_path / "out"}
    given["text"] = store / "text.txt"
    models = [store / "a", tmp_path / "near", store / "b"]
    swept = evals.basins(models, summary="stitching", **given)
    penalties = swept.matrix("stitching")
    assert penalties[0, 1] < 1e-9
    assert penalties[0, 2] == penalties[2, 0] >= 0
    stored = sorted((tmp_path / "out/sweep/stitching").iterdir())
    assert len(stored) == 3
    assert any("fitted on text.txt" in note for note in swept.record["notes"])
    before = [path.stat().st_mtime_ns for path in stored]
    again = evals.basins(models, summary="stitching", **given)
    assert (again.matrix("stitching") == penalties).all()
    assert [path.stat().st_mtime_ns for path in stored] == before
    stored[0].write_text(stored[0].read_text().replace('"distance": ', '"distance": 9'))
    captured_log.messages.clear()
    assert (evals.basins(models, summary="stitching", **given).matrix("stitching") == penalties).all()
    assert [line for line in captured_log.messages if f"{stored[0]} is not used, and measured again" in line]


def test_stitches_of_a_sweep_read_a_text_that_no_alignment_does() -> None:
    text = {"text": "t.jsonl", "text_column": ("premise", "hypothesis"), "samples": None}
    options = {"distance": "stitching", "summary": None, "align": None, **text}
    assert _text_of_stitches(options, 3) == TextSource("t.jsonl", ("premise", "hypothesis"), 512, 3)
    assert options["text"] is options["text_column"] is None
    aligned = {"distance": "stitching", "summary": None, "align": "weights", **text}
    assert _text_of_stitches(aligned, 3) is None
    line = {"distance": "line", "summary": None, "align": None, **text}
    assert _text_of_stitches(line, 3) is None
    assert aligned["text"] == line["text"] == "t.jsonl"


def test_the_text_of_stitches_is_read_before_the_lines_are_measured(store: Path, tmp_path: Path) -> None:
    told: list[str] = []
    with pytest.raises(CalibrationError, match="there is no such file"):
        evals.basins(
            [store / "a", store / "b"],
            task="mnli",
            data=store / "rows.jsonl",
            summary="stitching",
            text=tmp_path / "none.txt",
            tell=told.append,
        )
    assert told == []


def test_a_note_says_where_pairs_are_scored_and_single_texts_fitted() -> None:
    pairs, single = (
        Measured(Rows((texts,) * 2, (0, 1), ("no", "yes"), data, "", ("0", "1")), None, ())
        for texts, data in ((("a", "b"), "dev.jsonl"), (("a",), "some text"))
    )
    assert "maps are fitted on single texts (some text)" in fit_notes(single, pairs)[0]
    assert fit_notes(pairs, pairs) == fit_notes(pairs, single) == fit_notes(single, single) == []


def test_depths_of_models_of_other_sizes_meet_at_the_nearest_layer() -> None:
    assert depth_cuts(3, 4) == ((0, 0), (1, 1), (2, 2), (2, 3), (3, 4))  # 0.75 and 2.25 are rounded
    assert depth_cuts(3, 0) == ((0, 0),)


def test_the_distance_is_the_mean_penalty_inside_and_a_gain_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of A with score 1 and B with .8, cut at 1 and 2: penalties .1, .4, and two of below 0, by hand (.1 + .4) / 4."""
    scores = {("a", (1, 1)): 0.7, ("b", (1, 1)): 0.6, ("a", (2, 2)): 0.9, ("b", (2, 2)): 1.2}
    scores |= {(model, end): -9.0 for model in "ab" for end in ((0, 0), (3, 3))}

    class Layers:
        total = 3

    lives = [Layers(), Layers()]
    sides = [
        stitching.Side(live, lambda own=own: {"accuracy": own}, {})  # type: ignore[arg-type, misc]
        for live, own in zip(lives, (1.0, 0.8), strict=True)
    ]
    bottoms = {id(live): name for live, name in zip(lives, "ab", strict=True)}
    monkeypatch.setattr(StateSums, "read", lambda self, *_: self)
    monkeypatch.setattr(stitching, "fitted", lambda *_, reverse=False: "b" if reverse else "a")
    ways: set[str] = set()

    def fake_score(bottom: Any, _top: Any, at: tuple[int, int], way: str) -> dict[str, float]:
        ways.add(f"{bottoms[id(bottom)]} by the map of {way}")
        return {"accuracy": scores[bottoms[id(bottom)], at]}

    monkeypatch.setattr(stitching, "_score", fake_score)
    assert abs(stitching.stitching_distance(*sides, [], StitchPlan()) - 0.125) < 1e-12
    assert ways == {"a by the map of a", "b by the map of b"}


def test_the_reversed_control_is_b_below_a_and_held_against_the_score_of_a(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of A with score 1 and B with .8, cut at 2 and 1: .8 - .5 for the stitch, 1 - .7 for the reverse."""
    scores = {("a", "b", (2, 1)): 0.5, ("blank", "b", (2, 1)): 0.1, ("b", "a", (1, 2)): 0.7}
    a, b = (stitching.Side(name, dict, {}) for name in "ab")  # type: ignore[arg-type]

    class Sums:
        def equations(self, _at: object) -> NormalEquations:
            return NormalEquations(3, 2)

        def cka(self, _at: object) -> float:
            return 0.4

    ways: dict[str, bool] = {}

    def fake_fit(_sums: Any, at: tuple[int, int], _plan: StitchPlan, reverse: bool = False) -> Any:
        return StateMap("affine", torch.zeros(int(reverse), 1), torch.zeros(1), explained=0.9)

    def fake_score(bottom: Any, top: Any, at: tuple[int, int], mapping: StateMap) -> dict[str, float]:
        if mapping.kind == "affine":
            ways[f"{bottom}{top.live}"] = bool(len(mapping.weight))
        return {"accuracy": 0.0 if mapping.kind == "mean" else scores[bottom, top.live, at]}

    monkeypatch.setattr(stitching, "fitted", fake_fit)
    monkeypatch.setattr(stitching, "_score", fake_score)
    ends = {"a": {"accuracy": 1.0}, "b": {"accuracy": 0.8}}
    cut = stitching._measured(a, b, "blank", Sums(), Sums(), (2, 1), StitchPlan(), ends)  # type: ignore[arg-type]
    due = {"stitched": 0.3, "mean only": 0.8, "random A": 0.7, "reversed": 0.3}
    assert cut.penalties.keys() == due.keys()
    assert all(abs(cut.penalties[name] - penalty) < 1e-12 for name, penalty in due.items())
    assert ways == {"ab": False, "blankb": False, "ba": True}
    assert (cut.cka, cut.explained) == (0.4, 0.9)


def test_what_cannot_be_measured_is_one_line(store: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", CONFIG, 2, tokenizer=False)
    save_tokenizer(tmp_path / "c", [WORDS[1], WORDS[0], *WORDS[2:]])
    with pytest.raises(MismatchError, match="both models must read the same tokens"):
        evals.stitch(store / "a", tmp_path / "c", text=store / "text.txt")
    with pytest.raises(CalibrationError, match="needs text of at least 24 tokens"):
        evals.stitch(
            store / "a", store / "b", task="mnli", data=store / "rows.jsonl", text=["the doctor .", "a river ."]
        )
    with pytest.raises(UsageError, match="takes 10 texts or more; found 2"):
        evals.stitch(store / "a", store / "b", text=["the doctor .", "a river ."])
    with pytest.raises(UsageError, match="Did you mean 'affine'"):
        evals.stitch(store / "a", store / "b", map="afine")


@pytest.mark.slow
def test_a_model_whose_numbers_overflow_has_no_penalties(store: Path, tmp_path: Path) -> None:
    tensors = load_file(store / "b" / "model.safetensors")
    huge = {name: torch.full_like(t, 3e38) if name == "classifier.weight" else t for name, t in tensors.items()}
    broken = save_checkpoint(tmp_path / "broken", CONFIG, tensors=huge)
    with pytest.raises(TaskError, match="broken, whole or .*: the logits of 24 of 24 rows are NaN"):
        evals.stitch(store / "a", broken, task="mnli", data=store / "rows.jsonl", text=store / "text.txt", line=False)
    with pytest.raises(CheckpointError, match="the whole model's outputs are NaN or infinite"):
        evals.stitch(store / "a", broken, text=store / "text.txt", line=False)


def test_a_state_that_does_not_vary_has_a_cka_of_zero(store: Path, tmp_path: Path) -> None:
    """A gain of 0 makes the last layer write its bias at every token; the state before it varies (control)."""
    tensors = open_checkpoint(str(store / "a")).state_dict()
    tensors["bert.encoder.layer.1.output.LayerNorm.weight"].zero_()
    dead = open_checkpoint(str(save_checkpoint(tmp_path / "dead", CONFIG, tensors=tensors)))
    a, b = live_layers(live_model(dead)), live_layers(live_model(open_checkpoint(str(store / "b"))))
    texts = [(line,) for line in (store / "text.txt").read_text().splitlines()]
    sums = StateSums([(1, 1), (2, 2)]).read(a, b, encode(load_tokenizer(store / "a"), texts, 32).batches)
    assert sums.cka((2, 2)) == 0
    assert 0 < sums.cka((1, 1)) < 1
    both = StateSums([(2, 2)]).read(a, a, encode(load_tokenizer(store / "a"), texts, 32).batches)
    assert both.cka((2, 2)) == 0
