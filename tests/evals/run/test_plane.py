"""Planes of checkpoints: every point is the merge of that name, a run that was killed goes on, and the page shows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.torch import load_file
from tiny import NLI, bert_config, save_checkpoint

import evals
import merge
from evals.commands.evaluate_models import evaluate
from merge.errors import UsageError

SMALL = bert_config(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12)
ROWS = [
    {"premise": f"the {word} saw a lawyer .", "hypothesis": "a lawyer helped .", "label": NLI[k % 3]}
    for k, word in enumerate(["doctor", "lawyer", "river", "near"] * 3)
]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("zoo")
    for seed, name in enumerate("abc"):
        save_checkpoint(root / name, SMALL, seed=seed)
    for seed, step in enumerate((100, 20, 3)):
        save_checkpoint(root / "run" / f"checkpoint-{step}", SMALL, seed=seed)
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return root


@pytest.fixture
def inside(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(zoo)
    return zoo


def run(*words: str, code: int = 0) -> Any:
    done = CliRunner().invoke(evaluate, ["plane", *words, "--task", "mnli", "--data", "rows.jsonl"])
    assert done.exit_code == code, done.output or done.exception
    return done


def test_a_point_of_the_plane_is_the_merge_of_these_weights(inside: Path, tmp_path: Path) -> None:
    """Loss and accuracy of the average, and of a corner far outside, are those of the merged checkpoint on its own."""
    measured = evals.plane(["a", "b", "c"], task="mnli", data=ROWS, points=3, levels=0)
    record = measured.record
    weights = [o + x * u + y * v for o, u, v in zip(record["origin"], record["u"], record["v"], strict=True)
               for x, y in [record["points"][0][2:4]]]  # fmt: skip
    for coefficients, loss, accuracy in (
        ([1 / 3] * 3, record["marks"][3]["loss"], record["marks"][3]["score"]),
        (weights, record["points"][0][4], record["points"][0][6]),
    ):
        merged = merge.merge(["a", "b", "c"], method="linear", weights=coefficients, normalize=False)
        expected = evals.score(merged.checkpoint, "mnli", data=ROWS)[0]
        assert loss == pytest.approx(expected["loss"], rel=1e-5)
        assert accuracy == expected["accuracy"]
    assert record["marks"][0]["loss"] == pytest.approx(evals.score("a", "mnli", data=ROWS)[0]["loss"], rel=1e-6)
    far = [np.linalg.norm(np.concatenate([(load_file(f"{x}/model.safetensors")[n] - t).numpy().ravel()
           for n, t in load_file("a/model.safetensors").items()])) for x in "bc"]  # fmt: skip
    assert record["marks"][1]["x"] == pytest.approx(far[0], rel=1e-5)
    assert np.hypot(record["marks"][2]["x"], record["marks"][2]["y"]) == pytest.approx(far[1], rel=1e-5)
    assert "lowest on the grid" in str(measured)


def test_a_finer_grid_measures_new_points_only(inside: Path, tmp_path: Path) -> None:
    """The arrays are those of the record; the same call again measures nothing."""
    out, stored = tmp_path / "report", list[str]()
    for points in (3, 5, 5):
        record = evals.plane(["a", "b", "c"], task="mnli", data=ROWS, points=points, levels=0, output=out).record
        (store,) = (out / "surface").glob("points-*.jsonl")
        lines = store.read_text().splitlines()
        assert lines[: len(stored)] == stored
        assert len(lines) == points**2 + 4
        stored = lines
    with np.load(out / record["arrays"]) as arrays:
        assert arrays["loss"].tolist() == [point[4] for point in record["points"]]
        assert arrays["names"].tolist() == ["a", "b", "c", "average"]


@pytest.mark.slow
def test_the_page_shows_every_plane(inside: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    for points in ("3", "5"):
        done = run("a", "b", "c", "--points", points, "--levels", "0", "-o", str(out), "--json", "-q")
    assert len(json.loads(done.stdout)["points"]) == 25
    page = (out / "index.html").read_text()
    assert page.count('<div class="plane"') == 2
    assert page.count("<rect ") >= 9 + 25
    assert "Planes of the loss" in page
    assert evals.plane(["a", "b", "c"], task="mnli", data=ROWS, points=3, levels=0).plot().axes
    assert list(out.glob("plane-mnli-*.png"))


def test_the_plane_of_a_run_has_all_its_checkpoints_in_order(inside: Path) -> None:
    measured = evals.plane("run", task="mnli", data=ROWS, points=3, levels=0)
    marks = measured.record["marks"]
    assert [mark["name"] for mark in marks] == [f"run/checkpoint-{k}" for k in (3, 20, 100)] + ["average"]
    same = evals.plane(["c", "b", "a"], task="mnli", data=ROWS, points=3, levels=0)
    assert marks[0]["loss"] == same.record["marks"][0]["loss"]
    save_checkpoint(inside / "long", SMALL, seed=5)  # the final model of a run is often beside its checkpoints
    save_checkpoint(inside / "long" / "checkpoint-1", SMALL, seed=3)
    for step, seed in ((2, 0), (4, 1), (8, 2)):
        save_checkpoint(inside / "long" / f"checkpoint-{step}", SMALL, seed=seed)
    for span, words in (("average", "the average of 4 checkpoints"), ("pca", "principal components")):
        long = evals.plane("long", task="mnli", data=ROWS, points=3, levels=0, span=span).record
        assert words in long["axes"]
        assert len(long["marks"]) == 5
        assert long["marks"][4]["off"] == pytest.approx(0, abs=1e-4)
        assert max(mark["off"] for mark in long["marks"]) > 0.1


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (["a", "b"], "a plane takes three models, found 2"),
        (["a", "b", "b"], "b .* and b .* have the same weights"),
        (["a", "b", "c", "a"], "a plane takes three models, found 4"),
        (["empty"], "empty holds neither a checkpoint .* nor those of a training run"),
        (["short"], "found 1 checkpoints of the run"),
        (["a", "b", "wide"], "wide"),
    ],
)
def test_what_spans_no_plane_is_one_line(inside: Path, models: list[str], message: str) -> None:
    (inside / "empty").mkdir(exist_ok=True)
    save_checkpoint(inside / "short" / "checkpoint-1", SMALL, seed=3)
    save_checkpoint(inside / "wide", {**SMALL, "intermediate_size": 16}, seed=3)
    with pytest.raises(merge.errors.MergeError, match=message):
        evals.plane(models if len(models) > 1 else models[0], task="mnli", data=ROWS, points=3)


@pytest.mark.slow
@pytest.mark.parametrize("arrays", ["changed", "deleted"])
def test_a_stored_plane_whose_arrays_are_not_there_is_measured_again(inside: Path, tmp_path: Path, arrays: str) -> None:
    words = ("a", "b", "c", "--points", "3", "--levels", "0", "-o", str(tmp_path))
    run(*words)
    stored = tmp_path / "results.json"
    record = json.loads(stored.read_text())
    if arrays == "changed":
        damaged = json.loads(json.dumps(record))
        damaged["results"][0]["arrays"] = "nowhere.npz"
        stored.write_text(json.dumps(damaged))
    else:
        (tmp_path / record["results"][0]["arrays"]).unlink()
    run(*words)
    again = json.loads(stored.read_text())["results"][0]
    assert again["arrays"] == record["results"][0]["arrays"]
    assert (tmp_path / again["arrays"]).is_file()


def test_collinear_checkpoints_are_refused(inside: Path, tmp_path: Path) -> None:
    merge.merge(["a", "b"], method="linear", weights=[0.3, 0.7]).save(tmp_path / "between")
    with pytest.raises(UsageError, match="are on one line"):
        evals.plane(["a", "b", str(tmp_path / "between")], task="mnli", data=ROWS, points=3)


@pytest.mark.slow
def test_the_three_most_distant_models_of_a_sweep_span_its_plane(inside: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    save_checkpoint(inside / "d", SMALL, seed=9)
    swept = evals.basins(["a", "b", "c", "d"], task="mnli", data=ROWS, points=3, processes=1, output=out)
    apart = swept.matrix("convexity gap")
    sums = {
        three: sum(apart[i, j] for i in three for j in three) / 2
        for three in ((0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3))
    }
    best = {swept.models[k] for k in max(sums, key=lambda three: sums[three])}
    measured = evals.plane(["a", "b", "c", "d"], task="mnli", data=ROWS, points=3, levels=0, basins=out)
    assert {mark["name"] for mark in measured.record["marks"][:3]} == best
    with pytest.raises(UsageError, match="not among the 1 models given"):
        evals.plane(["a"], task="mnli", data=ROWS, points=3, basins=out)
    with pytest.raises(UsageError, match="has no basins.json"):
        evals.plane(["a"], task="mnli", data=ROWS, points=3, basins=tmp_path)
