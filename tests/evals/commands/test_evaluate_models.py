"""evaluate-models as a user types it: what is printed, what is written, and one line for whatever is wrong."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from tiny import NLI, WORDS, bert_config, random_tensors, save_checkpoint, write_text

from evals.commands.evaluate_models import evaluate, main
from evals.heuristics.grammar import SUBCASES, generate
from evals.heuristics.scores import HansTable
from evals.predict import predictor
from evals.report.table_text import Row, plain_table
from merge.symmetry.architectures import spec_for
from merge.symmetry.permutation import apply, restrict
from merge.symmetry.permutation import random as random_permutation

ROOT = Path(__file__).parents[3]
DATA = Path(os.environ.get("MERGE_MODELS_DATA") or Path(__file__).parents[4] / "shared" / "data")
PUBLISHED = DATA / "hans" / "published_predictions"
HEAD = ("classifier.weight", "classifier.bias")
# Accuracy on entailed, then on non-entailed pairs of lexical overlap, subsequence and constituent, as published.
BERT = ((0.9464, 0.9932, 0.9844), (0.1640, 0.0386, 0.1612))


@dataclass(frozen=True)
class Said:
    """How a command ended."""

    code: int
    out: str
    err: str


Run = Callable[..., Said]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Return a function that runs evaluate-models with these words, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def typed(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["evaluate-models", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        read = capsys.readouterr()
        return Said(code, read.out, read.err)

    return typed


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of models: a; b, another; copy, a with every unit and class elsewhere; larger; two; masked."""
    root = tmp_path_factory.mktemp("zoo")
    config = bert_config()
    tensors = random_tensors(config, 1, torch.float32)
    save_checkpoint(root / "a", tensors=tensors)
    save_checkpoint(root / "b", seed=2)
    spec = spec_for(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    drawn = random_permutation(spec, shapes, torch.Generator().manual_seed(5))
    axes = [axis for axis in drawn.indices if axis != "labels"]
    save_checkpoint(root / "copy", tensors=apply(spec, restrict(drawn, axes), tensors))
    swapped = random_tensors(config, 2, torch.float32)
    swapped |= {name: swapped[name][[2, 0, 1]] for name in HEAD}
    save_checkpoint(root / "swapped", bert_config(labels=(NLI[2], NLI[0], NLI[1])), tensors=swapped)
    save_checkpoint(root / "larger", bert_config(intermediate_size=48), seed=2)
    save_checkpoint(root / "sentiment", bert_config(labels=("negative", "positive")), seed=3)
    save_checkpoint(root / "bare", bert_config(labels=("LABEL_0", "LABEL_1", "LABEL_2")), seed=1)
    save_checkpoint(root / "one", bert_config(labels=("LABEL_0",)), seed=4)
    save_checkpoint(root / "masked", bert_config("BertForMaskedLM"))
    save_checkpoint(root / "mute", tokenizer=False)
    write_text(root / "text.txt", 250)
    _write_mnli(root / "mnli.jsonl")
    _write_hans(root / "hans.jsonl")
    return root


def _write_mnli(path: Path) -> None:
    generator = random.Random(0)
    rows = [
        {
            "premise": " ".join(generator.choices(WORDS[:11], k=generator.randint(2, 10))),
            "hypothesis": " ".join(generator.choices(WORDS[:11], k=generator.randint(2, 6))),
            "label": generator.choice(NLI),
        }
        for _ in range(60)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _write_hans(path: Path) -> None:
    """Write the first two pairs of each subcase as JSON lines."""
    keys = ("pairID", "premise", "hypothesis", "label", "heuristic", "subcase", "template")
    fields = ("pair_id", "premise", "hypothesis", "label", "heuristic", "subcase", "template")
    rows = [
        {key: getattr(pair, name) for key, name in zip(keys, fields, strict=True)} for pair in generate(per_subcase=2)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def store(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))["results"]


def written_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def no_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let any prediction fail the test."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was run")

    monkeypatch.setattr(predictor, "predict", refuse)
    monkeypatch.setattr(predictor, "build_written", refuse)


# ---- hans ----


@pytest.mark.slow
def test_hans_prints_a_row_a_model_and_writes_a_report(run: Run, zoo: Path) -> None:
    """Without --data the pairs are generated; --limit draws from all 30,000 of them."""
    result = run("hans", zoo / "a", zoo / "b", "--limit", 60, "-o", "report")
    assert result.code == 0
    assert "60 of 30,000 rows drawn with seed 0" in result.out.splitlines()[0]
    table = result.out.splitlines()[1:]
    assert [line.split()[0] for line in table] == ["model", str(zoo / "a"), str(zoo / "b")]
    assert written_in(Path("report")) == {"results.json", "predictions", "hans.png", "hans.svg", "index.html"}
    records = store(Path("report"))
    assert [record["model"]["name"] for record in records] == [str(zoo / "a"), str(zoo / "b")]
    assert all(record["n"] == 60 for record in records)
    assert all(f"{record['hans']['accuracy']:.4f}" in line for record, line in zip(records, table[1:], strict=True))
    assert "(neutral, contradiction) are pooled by their maximum" in result.err
    assert "wrote report/results.json, report/hans.png, report/hans.svg, report/index.html" in result.err


def test_a_second_run_recomputes_nothing_and_force_does(run: Run, zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With prediction forbidden the same command still answers; a change of rows, or --force, must predict."""
    words = ["glue", "mnli", zoo / "a", zoo / "b", "--data", zoo / "mnli.jsonl", "-o", "report"]
    first = run(*words)
    stored = store(Path("report"))
    with monkeypatch.context() as patch:
        no_predictions(patch)
        second = run(*words)
        assert (second.code, second.out) == (0, first.out)
        assert store(Path("report")) == stored
        for changed in (
            [*words, "--force"],
            [*words, "--limit", 9],
            [*words, "--labels", "neutral,entailment,contradiction"],
        ):
            assert run(*changed).code == 70  # what nobody foresaw: here the error of a model that is run
        assert run(*words[:-2]).code == 70
    forced = run(*words, "--force")
    assert (forced.code, forced.out) == (0, first.out)
    again = store(Path("report"))
    assert [record["key"] for record in again] == [record["key"] for record in stored]
    assert [record["seconds"] for record in again] != [record["seconds"] for record in stored]


def test_a_result_is_told_under_the_name_that_was_typed(
    run: Run, zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that was moved is found by its content, and goes by its new name from then on."""
    save_checkpoint(tmp_path / "old", seed=7)
    words = ["--data", zoo / "mnli.jsonl", "-o", "report"]
    run("glue", "mnli", "old", *words)
    (tmp_path / "old").rename(tmp_path / "new")
    no_predictions(monkeypatch)
    result = run("glue", "mnli", "new", *words)
    assert result.code == 0
    assert result.out.splitlines()[2].startswith("new ")
    assert [record["model"]["name"] for record in store(Path("report"))] == ["new"]


def test_a_figure_compares_models_on_the_same_rows_only(run: Run, zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One folder may hold results on other rows; the picture of this run must not mix them."""
    from evals.report import hans_figure, page

    monkeypatch.setattr(page, "write_page", lambda folder: folder / "index.html")
    drawn: list[list[tuple[str, int]]] = []
    monkeypatch.setattr(
        hans_figure,
        "hans_plot",
        lambda records, stem: drawn.append([(r["model"]["name"], r["n"]) for r in records]) or (),
    )
    words = ["--data", zoo / "hans.jsonl", "-o", "report"]
    run("hans", zoo / "a", "--limit", 20, *words)
    run("hans", zoo / "a", *words)
    run("hans", zoo / "b", *words)
    assert drawn == [[(str(zoo / "a"), 20)], [(str(zoo / "a"), 60)], [(str(zoo / "a"), 60), (str(zoo / "b"), 60)]]


@pytest.mark.slow
def test_official_is_the_authors_text_and_nothing_else(run: Run, zoo: Path) -> None:
    """Four blocks of `name: float`, unrounded, made of the stored record: printed twice, computed once."""
    words = ["hans", zoo / "a", "--data", zoo / "hans.jsonl", "-o", "report"]
    result = run(*words, "--format", "official")
    assert result.code == 0
    (record,) = store(Path("report"))
    table = record["hans"]
    lines = []
    for title, label in (("entailed", "entailment"), ("non-entailed", "non-entailment")):
        lines += [f"Heuristic {title} results:", *(f"{h}: {row[label]}" for h, row in table["heuristics"].items()), ""]
    lines += ["Subcase results:", *(f"{k}: {v}" for k, v in table["subcases"].items()), ""]
    lines += ["Template results:", *(f"{k}: {v}" for k, v in table["templates"].items())]
    assert result.out == "\n".join(lines) + "\n"
    assert len(table["subcases"]) == len(SUBCASES) == 30
    assert Path("report/hans.png").is_file()
    assert HansTable.from_json(table).to_json() == table


def test_official_is_one_models_text(run: Run, zoo: Path) -> None:
    """It holds no name, so two of them could not be told apart; and it is not JSON."""
    two = run("hans", zoo / "a", zoo / "b", "--data", zoo / "hans.jsonl", "--format", "official")
    assert_refused(two, "one model without its name; found 2", code=2)
    both = run("hans", zoo / "a", "--data", zoo / "hans.jsonl", "--format", "official", "--json")
    assert_refused(both, "two formats of one output", code=2)


def test_detail_adds_subcases_and_templates(run: Run, zoo: Path) -> None:
    plain = run("hans", zoo / "a", "--data", zoo / "hans.jsonl", "-q")
    detailed = run("hans", zoo / "a", "--data", zoo / "hans.jsonl", "-q", "--detail")
    assert detailed.out.startswith(plain.out)
    more = detailed.out.removeprefix(plain.out)
    assert all(case.name in more for case in SUBCASES)
    assert "temp1 " in more
    assert detailed.err == ""


def test_hans_uses_stated_labels(run: Run, zoo: Path) -> None:
    """The weights of `bare` are those of `a`; with a's names stated it has a's scores, under its own name."""
    words = ["--data", zoo / "hans.jsonl", "--json", "-q"]
    (a,) = json.loads(run("hans", zoo / "a", *words).out)
    (bare,) = json.loads(run("hans", zoo / "bare", *words, "--labels", ", ".join(NLI)).out)
    assert bare["scores"] == a["scores"]
    assert bare["hans"] == a["hans"]


# ---- predictions of others ----


def prediction_file(path: Path, label: Callable[[int, Any], str]) -> Path:
    """Write predictions on the pairs that _write_hans writes."""
    pairs = list(generate(per_subcase=2))
    lines = [f"{pair.pair_id},{label(k, pair)}\n" for k, pair in enumerate(pairs)]
    path.write_text("pairID,gold_label\n" + "".join(lines), encoding="utf-8")
    return path


def test_a_prediction_file_is_scored_without_a_model(run: Run, zoo: Path, tmp_path: Path) -> None:
    """Always neutral is right on every pair that is not entailed: half of them. Nothing is written."""
    path = prediction_file(tmp_path / "neutral.txt", lambda k, pair: "neutral")
    result = run("hans", "--predictions", path, "--data", zoo / "hans.jsonl", "--json")
    table = json.loads(result.out)
    assert (result.code, table["accuracy"]) == (0, 0.5)
    assert {row["entailment"] for row in table["heuristics"].values()} == {0.0}
    assert {row["non-entailment"] for row in table["heuristics"].values()} == {1.0}
    perfect = prediction_file(tmp_path / "gold.txt", lambda k, pair: pair.label)
    result = run("hans", "--predictions", perfect, "--data", zoo / "hans.jsonl")
    assert result.out.splitlines()[1].split() == ["gold.txt", *["1.0000"] * 7]
    assert {path.name for path in tmp_path.iterdir()} == {"neutral.txt", "gold.txt"}


def test_predictions_have_the_official_form_too(run: Run, zoo: Path, tmp_path: Path) -> None:
    path = prediction_file(tmp_path / "gold.txt", lambda k, pair: pair.label)
    result = run("hans", "--predictions", path, "--data", zoo / "hans.jsonl", "--format", "official")
    assert result.out.startswith("Heuristic entailed results:\nlexical_overlap: 1.0\n")
    assert result.out.endswith(": 1.0\n")
    assert not result.out.endswith("\n\n")


@pytest.mark.parametrize(
    "more",
    [("a",), ("--limit", "5"), ("--max-length", "9"), ("-o", "report"), ("--force",)],
    ids=lambda words: words[0],
)
def test_predictions_take_no_models_and_nothing_that_would_be_ignored(
    run: Run, tmp_path: Path, more: tuple[str, ...]
) -> None:
    path = prediction_file(tmp_path / "gold.txt", lambda k, pair: pair.label)
    assert_refused(run("hans", "--predictions", path, *more), "--predictions scores a file; it takes no", code=2)
    assert not Path("report").exists()


@pytest.mark.slow
def test_published_predictions_have_their_published_scores(run: Run) -> None:
    """The four files of the HANS authors, scored by pair id; BERT's six accuracies are those of the paper's model."""
    files = sorted(PUBLISHED.glob("*.txt.gz"))
    if not files:
        pytest.skip("the published predictions are not at hand")
    assert len(files) == 4
    for path in files:
        result = run("hans", "--predictions", path, "--json", "-q")
        table = json.loads(result.out)
        assert (result.code, result.err) == (0, "")
        assert table["counts"]["pairs"] == 30_000
        if path.name.startswith("bert"):
            rows = table["heuristics"].values()
            assert tuple(row["entailment"] for row in rows) == BERT[0]
            assert tuple(row["non-entailment"] for row in rows) == BERT[1]


# ---- glue ----


def test_glue_prints_the_scores_of_every_model(run: Run, zoo: Path) -> None:
    result = run("glue", "mnli", zoo / "a", zoo / "b", "--data", zoo / "mnli.jsonl", "-o", "report")
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0] == "mnli: mnli.jsonl, 60 rows"
    assert lines[1].split()[:5] == ["model", "task", "split", "n", "accuracy"]
    for line, record in zip(lines[2:], store(Path("report")), strict=True):
        assert line.split()[:4] == [record["model"]["name"], "mnli", "mnli", "60"]
        assert {f"{record['scores'][name]:.4f}" for name in ("accuracy", "loss")} <= set(line.split())
    assert written_in(Path("report")) == {"results.json", "predictions", "index.html"}


def test_json_is_all_there_is_on_stdout(run: Run, zoo: Path) -> None:
    """Notes and progress go to stderr, so that the output can be piped; -q silences them."""
    words = ["glue", "mnli", zoo / "a", "--data", zoo / "mnli.jsonl", "--json"]
    result = run(*words)
    (record,) = json.loads(result.out)
    assert record["kind"] == "scores"
    assert "predicting mnli" in result.err
    quiet = run(*words, "-q")
    assert json.loads(quiet.out)[0]["scores"] == record["scores"]
    assert quiet.err == ""


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_that_predicts_no_number_is_refused(
    run: Run, zoo: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    """An accuracy of what is no prediction would be that of the first class; two of 60 rows are enough."""
    logits = torch.zeros(60, 3)
    logits[[3, 50], 1] = value
    monkeypatch.setattr(predictor, "predict", lambda *_, **__: logits)
    words = ("glue", "mnli", zoo / "a", "--data", zoo / "mnli.jsonl")
    said = f"{zoo / 'a'}: the logits of 2 of 60 rows are NaN or infinite"
    assert_refused(run(*words, "-o", "report"), said)
    assert not Path("report").exists()
    assert_refused(
        run("barrier", zoo / "a", zoo / "b", "--task", "mnli", *words[3:]), "naive path, at 0.0: the logits of 2 of 60"
    )


# ---- any task ----


def test_score_takes_a_task_file(run: Run, zoo: Path) -> None:
    """The zoo's own rows under another name: the scores are those of mnli, the record says whose task it is."""
    Path("mine.yaml").write_text(
        f"name: mine\ndata: {zoo / 'mnli.jsonl'}\ncolumns: [premise, hypothesis]\nlabel_column: label\n"
        "labels: [entailment, neutral, contradiction]\n",
        encoding="utf-8",
    )
    result = run("score", "mine.yaml", zoo / "a", "--json", "-q")
    assert result.code == 0, result.err
    (mine,), (mnli,) = (
        json.loads(result.out),
        json.loads(run("score", "mnli", zoo / "a", "--data", zoo / "mnli.jsonl", "--json", "-q").out),
    )
    assert (mine["task"], mnli["task"]) == ("mine", "mnli")
    assert mine["scores"] == mnli["scores"]
    assert mine["key"] != mnli["key"]


def test_score_on_hans_is_the_hans_command(run: Run, zoo: Path) -> None:
    words = [zoo / "a", "--data", zoo / "hans.jsonl", "-q"]
    assert run("score", "hans", *words, "--json").code == 0
    (one,), (other,) = (json.loads(run(*name, *words, "--json").out) for name in (["score", "hans"], ["hans"]))
    assert one["hans"] == other["hans"]


def test_a_model_of_one_output_is_scored_on_a_number(run: Run, zoo: Path) -> None:
    """Pearson, Spearman and the mean squared error; nothing is pooled and no order of classes is doubted."""
    path = Path("sts.jsonl")
    rows = [{"sentence1": "the doctor", "sentence2": "a river " * (k % 5 + 1), "label": k % 6} for k in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    result = run("glue", "stsb", zoo / "one", "--data", path, "--json")
    assert result.code == 0, result.err
    (record,) = json.loads(result.out)
    assert {"pearson", "spearmanr", "loss"} <= set(record["scores"])
    assert record["labels"] == []
    assert not any("pooled" in note or "order" in note for note in record["notes"])


def test_classes_in_another_order_are_noted_with_the_accuracy_of_every_order(
    run: Run, zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that is right on every row, under its own names and under names turned round: the note says which."""
    words = ["score", "mnli", zoo / "a", "--data", zoo / "mnli.jsonl", "--json"]
    lines = [json.loads(line) for line in (zoo / "mnli.jsonl").read_text(encoding="utf-8").splitlines()]
    gold = torch.tensor([NLI.index(line["label"]) for line in lines])
    monkeypatch.setattr(predictor, "predict", lambda *_, **__: torch.nn.functional.one_hot(gold, 3).float())
    (right,) = json.loads(run(*words).out)
    assert right["scores"]["accuracy"] == 1
    assert not any("looks wrong" in note for note in right["notes"])
    result = run(*words, "--labels", "contradiction,entailment,neutral")
    (wrong,) = json.loads(result.out)
    assert wrong["scores"]["accuracy"] == 0
    (note,) = [note for note in wrong["notes"] if "looks wrong" in note]
    assert "accuracy on mnli is 0.0000 as they are named and 1.0000 in another order" in note
    assert note.endswith("--labels entailment,neutral,contradiction")
    assert note in result.err


def test_tasks_lists_every_task(run: Run) -> None:
    """Name, classes in their order, scores and source, as text and as JSON."""
    from evals.tasks import TASKS

    listing = json.loads(run("tasks", "--json").out)
    assert [row["name"] for row in listing] == list(TASKS)
    assert listing[0] == {
        "name": "cola",
        "labels": ["unacceptable", "acceptable"],
        "metrics": ["matthews_correlation"],
        "source": "nyu-mll/glue:cola/validation",
    }
    result = run("tasks")
    assert result.code == 0
    assert [line.split()[0] for line in result.out.splitlines()] == ["task", *TASKS]


# ---- barrier ----


@pytest.mark.slow
def test_a_planted_copy_is_flat_once_aligned_and_not_before(run: Run, zoo: Path) -> None:
    """`copy` is `a` with every head, unit and channel elsewhere: the same function, other weights.

    Naively the middle of the two is another model; aligned, the line is one point.
    """
    words = [
        "barrier",
        zoo / "a",
        zoo / "copy",
        "--task",
        "mnli",
        "--data",
        zoo / "mnli.jsonl",
        "--points",
        5,
        "--json",
    ]
    result = run(*words, "--align", "activations", "--text", zoo / "text.txt", "-o", "report")
    assert result.code == 0, result.err
    (record,) = json.loads(result.out)
    naive, aligned = record["curves"]
    assert naive["name"] == "naive"
    assert aligned["name"].startswith("aligned (activations; residual")
    assert aligned["barrier"] < 1e-5
    assert max(aligned["loss"]) - min(aligned["loss"]) < 1e-5
    assert max(naive["loss"]) - min(naive["loss"]) > 1e-2
    assert naive["loss"][0] == pytest.approx(aligned["loss"][0], abs=1e-6)
    assert naive["loss"][-1] == pytest.approx(aligned["loss"][-1], abs=1e-5)
    assert sum(moved for moved, _ in record["alignment"]["moved"].values()) > 50
    written = sorted(path.suffix for path in Path("report").iterdir())
    assert written == [".html", ".json", ".png", ".svg"]


@pytest.mark.slow
def test_without_align_there_is_the_naive_curve_alone(run: Run, zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And it is taken from the results folder the second time; other points are measured anew."""
    words = ["barrier", zoo / "a", zoo / "b", "--task", "mnli", "--data", zoo / "mnli.jsonl", "-o", "report"]
    first = run(*words, "--points", 4)
    assert first.code == 0
    (record,) = store(Path("report"))
    assert [curve["name"] for curve in record["curves"]] == ["naive"]
    assert len(record["curves"][0]["lam"]) == 4
    assert "alignment" not in record
    assert f"{record['curves'][0]['barrier']:.4f}" in first.out
    no_predictions(monkeypatch)
    assert run(*words, "--points", 4).out == first.out
    assert "a model was run" in run(*words, "--points", 3).err
    assert "a model was run" in run(*words, "--points", 4, "--force").err


def test_labels_in_another_order_do_not_change_the_barrier(run: Run, zoo: Path) -> None:
    """`swapped` is `b` with its classes in another order, in the head and by name; the note says that they were moved."""
    words = ["--task", "mnli", "--data", zoo / "mnli.jsonl", "--points", 3, "--json"]
    (straight,) = json.loads(run("barrier", zoo / "a", zoo / "b", *words).out)
    (swapped,) = json.loads(run("barrier", zoo / "a", zoo / "swapped", *words).out)
    assert swapped["curves"][0]["loss"] == pytest.approx(straight["curves"][0]["loss"], abs=1e-6)
    assert swapped["curves"][0]["barrier"] == pytest.approx(straight["curves"][0]["barrier"], abs=1e-6)
    assert any("reordered by name" in note for note in swapped["notes"])
    (turned,) = json.loads(run("barrier", zoo / "swapped", zoo / "a", *words).out)
    assert turned["curves"][0]["loss"][::-1] == pytest.approx(straight["curves"][0]["loss"], abs=1e-6)


def test_a_barrier_on_hans_says_how_classes_were_pooled(run: Run, zoo: Path) -> None:
    result = run("barrier", zoo / "a", zoo / "b", "--task", "hans", "--data", zoo / "hans.jsonl", "--points", 3)
    assert result.code == 0
    assert "(neutral, contradiction) are pooled by their maximum" in result.err
    assert result.out.splitlines()[0] == "hans: hans.jsonl, 60 pairs"


# ---- line ----


@pytest.mark.slow
def test_a_line_has_the_curves_of_barrier_and_every_summary_of_each(
    run: Run, zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On two data sets, with two heads; a second run measures nothing, and one more data set only that."""
    words: list[object] = [zoo / "a", zoo / "b", "--task", "mnli", "--data", zoo / "mnli.jsonl", "--points", 3]
    (barrier,) = json.loads(run("barrier", *words, "--json").out)
    words = ["line", *words, "--head", "both", "--head", "A", "-o", "report"]
    hans = ["--also", f"hans={zoo / 'hans.jsonl'}"]
    first = run(*words, *hans)
    assert first.code == 0, first.err
    assert first.out.splitlines()[:2] == ["mnli: mnli.jsonl, 60 rows", "hans: hans.jsonl, 60 pairs"]
    assert first.out.count("Entezari et al. 2022") == 2
    mnli, other = store(Path("report"))
    assert (mnli["kind"], mnli["task"], other["task"]) == ("line", "mnli", "hans")
    assert [curve["name"] for curve in mnli["curves"]] == ["naive", "naive, head of a"]
    curve = mnli["curves"][0]
    assert {name: curve[name] for name in barrier["curves"][0]} == barrier["curves"][0]
    figures = {each["name"]: each for each in curve["summaries"]}
    assert figures["loss barrier"]["value"] == curve["barrier"]
    assert figures["epsilon"]["value"] == curve["epsilon"]
    assert figures["convexity gap"]["at"] == curve["convexity_interval"]
    page = Path("report/index.html").read_text(encoding="utf-8")
    assert page.count("Every summary, with its source") == 2
    no_predictions(monkeypatch)
    assert run(*words, *hans).out == first.out
    assert run(*words).out.count("Entezari et al. 2022") == 1
    assert "a model was run" in run(*words, "--adaptive").err


@pytest.mark.slow
def test_an_aligned_copy_has_no_barrier_by_any_summary(run: Run, zoo: Path) -> None:
    """Naive and aligned stand side by side; the copy is nearer to a once it is aligned, and nothing rises between."""
    words = ["--task", "mnli", "--data", zoo / "mnli.jsonl", "--points", 3, "--align", "activations", "--text"]
    result = run(
        "line", zoo / "a", zoo / "copy", *words, zoo / "text.txt", "--head", "both", "--head", "refit", "--json"
    )
    assert result.code == 0, result.err
    (record,) = json.loads(result.out)
    assert [curve["head"] for curve in record["curves"]] == ["both", "refit"] * 2
    naive, _, aligned, refitted = ({s["name"]: s["value"] for s in c["summaries"]} for c in record["curves"])
    assert {name for name, value in aligned.items() if value > 1e-4} == {"mean loss"}
    assert naive["distance"] > 1
    assert naive["area"] > 1e-2
    assert refitted["loss barrier"] < 1e-2


# ---- what is wrong ----


def assert_refused(result: Said, *parts: str, code: int = 1) -> None:
    """Assert one line on stderr that holds the parts, nothing on stdout, and the exit code."""
    assert result.code == code, result.err
    assert result.out == ""
    assert result.err.count("\n") == 1, result.err
    assert result.err.startswith("evaluate-models: ")
    for part in parts:
        assert part in result.err
    assert "Traceback" not in result.err


PAIR = ["barrier", "ZOO/a", "ZOO/b", "--task", "mnli"]
LINE = ["line", "ZOO/a", "ZOO/b", "--task", "mnli", "--data", "ZOO/mnli.jsonl"]
BAD: list[tuple[str, list[str], tuple[str, ...], int]] = [
    ("unknown task", ["glue", "mnly", "ZOO/a"], ("unknown task 'mnly' of GLUE", "Did you mean 'mnli'?", "sst2"), 2),
    ("a task that is not GLUE's", ["glue", "hans", "ZOO/a"], ("'hans' of GLUE", "evaluate-models score hans takes it"), 2),
    ("a task file that is not GLUE's", ["glue", "t.yaml", "ZOO/a"], ("evaluate-models score t.yaml takes it",), 2),
    ("unknown task to score", ["score", "sickk", "ZOO/a"], ("Did you mean 'sick'?", "is a file: TASK.yaml"), 2),
    ("no models to score", ["score", "sick"], ("no models given",), 2),
    ("missing task file", ["score", "none.yaml", "ZOO/a"], ("task file none.yaml cannot be read",), 2),
    ("no source", ["score", "sick", "ZOO/a"], ("the Hub has no edition", "give a file such as SICK_test_annotated.txt"), 1),
    ("labels of a number", ["glue", "stsb", "ZOO/one", "--labels", "x"], ("--labels names classes; stsb asks for a number",), 2),
    ("a classifier for a number", ["glue", "stsb", "ZOO/a"], ("stsb asks for a number",), 1),
    ("two classes for three", ["score", "snli", "ZOO/a", "ZOO/sentiment"], ("gold labels are not folded",), 1),
    ("unknown task of a barrier", ["barrier", "ZOO/a", "ZOO/b", "--task", "han"], ("Did you mean 'hans'?",), 2),
    ("no models", ["hans"], ("no models given. Example: evaluate-models hans",), 2),
    ("no models for glue", ["glue", "mnli"], ("no models given",), 2),
    ("empty name in labels", ["hans", "ZOO/a", "--labels", "a,,b"], ("--labels expects names separated by commas",), 2),
    ("unknown aligner", [*PAIR, "--align", "activation"], ("Did you mean 'activations'?",), 2),
    ("text without align", [*PAIR, "--text", "x.txt"], ("text belongs to an alignment",), 2),
    ("axes without align", [*PAIR, "--axes", "ffn"], ("axes belongs to an alignment",), 2),
    ("samples without align", [*PAIR, "--samples", "9"], ("samples belongs to an alignment",), 2),
    ("no samples", [*PAIR, "--align", "weights", "--samples", "0"], ("0 is not in the range",), 2),
    ("empty axes", [*PAIR, "--align", "weights", "--axes", ""], ("--axes expects names",), 2),
    ("missing model", ["hans", "ZOO/a", "ZOO/none"], ("none: no such folder",), 1),
    ("missing model of a barrier", ["barrier", "ZOO/a", "ZOO/none", "--task", "mnli"], ("none: no such folder",), 1),
    ("no classifier", ["glue", "mnli", "ZOO/masked"], ("is a BertForMaskedLM; this task needs a sequence classifier",), 1),
    ("other labels", ["glue", "mnli", "ZOO/a", "ZOO/sentiment"], ("labels negative, positive are not those of mnli",), 1),
    ("placeholder labels", ["glue", "mnli", "ZOO/bare"], ("LABEL_0", "--labels entailment,neutral,contradiction"), 1),
    ("wrong labels", ["glue", "mnli", "ZOO/a", "--labels", "positive,negative,other"], ("positive, negative, other are not",), 1),
    ("too few labels", ["hans", "ZOO/a", "--labels", "entailment,neutral"], ("has 3 classes, but --labels names 2",), 1),
    ("no tokenizer", ["glue", "mnli", "ZOO/mute", "--data", "ZOO/mnli.jsonl"], ("has no tokenizer",), 1),
    ("missing data", ["glue", "mnli", "ZOO/a", "--data", "none.jsonl"], ("none.jsonl: there is no such file or folder",), 1),
    ("missing HANS data", ["hans", "ZOO/a", "--data", "none.txt"], ("none.txt: expected a file, found none",), 1),
    ("data of another task", ["hans", "ZOO/a", "--data", "ZOO/mnli.jsonl"], ("line 1: expected columns pairID, premise",), 1),
    ("missing predictions", ["hans", "--predictions", "none.txt"], ("none.txt: expected a file, found none",), 1),
    ("a number for classifiers", [*LINE, "--also", "stsb"], ("stsb asks for a number",), 1),
    ("unknown task beside", [*LINE, "--also", "han"], ("Did you mean 'hans'?",), 2),
    ("no data beside", [*LINE, "--also", "hans="], ("--also expects TASK or TASK=DATA, found 'hans='",), 2),
    ("missing data beside", [*LINE, "--also", "mnli=none.jsonl"], ("none.jsonl: there is no such file",), 1),
    ("the same rows twice", [*LINE, "--also", "mnli=ZOO/mnli.jsonl"], ("mnli is asked for twice with the same rows",), 2),
    ("few rows to refit", [*LINE, "--head", "refit", "--limit", "3"], ("--head refit on mnli: class", "of 3 rows"), 1),
    ("a task beside that does not fit", [*LINE, "--also", "sst2"], ("are not those of sst2",), 1),
    ("two sizes", ["barrier", "ZOO/a", "ZOO/larger", "--task", "mnli", "--data", "ZOO/mnli.jsonl"], ("intermediate_size",), 1),
    ("two label sets", ["barrier", "ZOO/a", "ZOO/bare", "--task", "mnli", "--data", "ZOO/mnli.jsonl"], ("label sets differ",), 1),
    ("missing text", [*PAIR, "--data", "ZOO/mnli.jsonl", "--align", "weights", "--text", "no.txt"],
     ("no.txt: there is no such file",), 1),
]  # fmt: skip


@pytest.mark.parametrize(("words", "parts", "code"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_a_mistake_is_one_line_and_nothing_is_written(
    run: Run, zoo: Path, words: list[str], parts: tuple[str, ...], code: int
) -> None:
    """Exit 2 for what was typed wrongly, 1 for what cannot be done; results only where there are some."""
    words = [word.replace("ZOO", str(zoo)) for word in words]
    result = run(*words, *([] if "--predictions" in words else ["-o", "report"]))
    if "intermediate_size" in parts:  # the checks of a pair say all their faults, one a line
        result = Said(result.code, result.out, result.err.splitlines()[0] + "\n")
    assert_refused(result, *parts, code=code)
    assert list(Path().iterdir()) == []


def test_mistakes_are_found_before_a_model_is_run(run: Run, zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second model's labels are wrong: the first, which is fine, must not be evaluated for nothing."""
    no_predictions(monkeypatch)
    assert_refused(
        run("glue", "mnli", zoo / "a", zoo / "sentiment", "--data", zoo / "mnli.jsonl"), "are not those of mnli"
    )


def test_a_results_file_that_is_broken_is_kept_and_said(run: Run, zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --force too: the other results in it are not ours to lose."""
    Path("report").mkdir()
    Path("report/results.json").write_text("{", encoding="utf-8")
    no_predictions(monkeypatch)
    for more in ([], ["--force"]):
        result = run("glue", "mnli", zoo / "a", "--data", zoo / "mnli.jsonl", "-o", "report", *more)
        assert_refused(result, "results.json cannot be read")
    assert Path("report/results.json").read_text(encoding="utf-8") == "{"


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([], "Missing command"),
        (["hans", "m", "--limit", "0"], "0 is not in the range x>=1"),
        (["barrier", "a"], "Missing argument 'B'"),
        (["barrier", "a", "b"], "Missing option '--task'"),
        (["line", "a", "b", "--task", "mnli", "--head", "B"], "'B' is not one of 'both', 'A', 'refit'"),
        (["glue"], "Missing argument 'TASK'"),
        (["glu"], "No such command 'glu'"),
        (["hans", "--fromat", "x"], "No such option '--fromat'"),
        (["hans", "--format", "latex", "m"], "'latex' is not one of 'table', 'official'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_usage_errors_exit_2_and_point_to_the_help(run: Run, words: list[str], found: str) -> None:
    known = words[0] if words and words[0] in evaluate.commands else ""
    page = f"evaluate-models {known}".rstrip()
    assert_refused(run(*words), found, f"See {page} --help", code=2)


# ---- the table in the terminal ----


def test_a_table_stands_in_columns_with_numbers_to_the_right() -> None:
    """Each column is as wide as its widest cell, two spaces apart, and no line ends in spaces."""
    rows: list[Row] = [["model", "n", "loss"], ["a", 60, 0.5], ["longer", 9815, None]]
    assert plain_table(rows) == "model       n    loss\na          60  0.5000\nlonger  9,815       –"


def test_a_table_of_words_stands_to_the_left() -> None:
    """One word among the numbers makes the column text; a header alone is a table too."""
    rows: list[Row] = [["x", "where"], [1, "0.5"], [2, None]]
    assert plain_table(rows) == "x  where\n1  0.5\n2  –"
    assert plain_table([["x", "where"]]) == "x  where"


def test_a_name_cannot_break_its_row() -> None:
    """A folder's name may hold a line end; a row stays one line."""
    assert plain_table([["model", "n"], ["two\nlines\t", 3]]) == "model      n\ntwo lines  3"


# ---- the command itself ----


def subprocess_of(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("word", ["", "score", "hans", "glue", "compare", "barrier", "line", "tasks"])
def test_help_shows_examples(run: Run, word: str) -> None:
    result = run(*([word] if word else []), "--help")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("Usage: evaluate-models")
    assert "Example" in result.out
    assert f"evaluate-models {word}".strip() in result.out


def test_the_help_lists_every_command_with_a_line(run: Run) -> None:
    """The line is whole: click cuts those that are too long, and ends them in dots."""
    lists = run("--help").out.partition("Options:")[2].partition("Examples:")[0]
    told = dict(re.findall(r"(?m)^  (\w+) +(\S.*)$", lists))
    names = ["score", "glue", "hans", "compare", "barrier", "basins", "line", "tasks"]
    names += ["plane", "curve", "simplex", "monotonic", "features", "similarity", "stitch", "lesion", "linearity"]
    assert sorted(told) == sorted(names)
    assert all(len(line) > 15 and line.strip().endswith((".", "?")) for line in told.values())
    assert not any("..." in line for line in told.values())


def test_help_imports_nothing_heavy() -> None:
    """It answers at once because torch and the like are imported by what needs them; a mistyped task is as quick."""
    program = """
import sys
from merge.entry import evaluate_models
for words in (["--help"], ["line", "--help"], ["hans"], ["glue", "mnly", "m"], ["tasks"]):
    sys.argv = ["evaluate-models", *words]
    try:
        evaluate_models()
    except SystemExit as stop:
        print("exit", stop.code, file=sys.stderr)
heavy = ("torch", "transformers", "datasets", "evaluate", "matplotlib", "sklearn", "numpy")
print([name for name in heavy if name in sys.modules], file=sys.stderr)
"""
    done = subprocess_of(program)
    assert done.stderr.splitlines()[-1] == "[]"
    assert done.stderr.count("exit 2") == 2
    assert done.stdout.count("Usage: evaluate-models") == 2
    assert "advglue_rte" in done.stdout


@pytest.mark.parametrize("kind", ["package", "namespace", "module"])
def test_a_foreign_evals_is_one_clear_line(tmp_path: Path, kind: str) -> None:
    """Another distribution's `evals` in front of ours: named, with its place, and none of its code is run."""
    if kind == "module":
        foreign = tmp_path / "evals.py"
        foreign.write_text("raise SystemError\n", encoding="utf-8")
    else:
        foreign = tmp_path / "evals"
        foreign.mkdir()
        if kind == "package":
            (foreign / "__init__.py").write_text("raise SystemError\n", encoding="utf-8")
    # Ours lies in the repository; for a folder without __init__.py to be found, it must not be on the path.
    ours = f"sys.path[:] = [p for p in sys.path if p not in ('', {str(ROOT)!r})]" if kind == "namespace" else "pass"
    program = f"""
import sys
import merge.entry
sys.path.insert(0, {str(tmp_path)!r})
{ours}
merge.entry.evaluate_models()
"""
    done = subprocess_of(program, PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(
        f"evaluate-models: expected the package 'evals' of merge-models at {ROOT / 'evals'}, found {foreign}."
    )
    assert "pip uninstall evals" in done.stderr


def test_no_evals_at_all_is_one_clear_line() -> None:
    """An installation that lost half of itself."""
    program = f"""
import sys
import merge.entry
sys.path[:] = [p for p in sys.path if p not in ("", {str(ROOT)!r})]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
merge.entry.evaluate_models()
"""
    done = subprocess_of(program, PYTHONPATH="")
    assert done.returncode == 1
    assert "found none." in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["score", "glue", "hans", "barrier", "line"])
def test_commands_that_run_a_model_take_the_number_of_threads(
    command: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is set for the numerical libraries before they are imported; the control: without it, it is what the user set."""
    variables = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    for name in variables:
        monkeypatch.setenv(name, "2")
    assert run(command, "--help").code == 0
    assert [os.environ[name] for name in variables] == ["2", "2"]
    result = run(command, "--threads", "3", "--help")
    assert result.code == 0
    assert "--threads" in result.out
    assert [os.environ[name] for name in variables] == ["3", "3"]
    assert "--threads" in run(command, "--threads", "0", "mnli", "a", "b").err


def test_commands_that_run_no_model_take_no_threads(run: Run) -> None:
    for command in ("tasks", "compare"):
        assert "No such option '--threads'" in run(command, "--threads", "1").err


def test_line_and_barrier_take_the_same_options() -> None:
    """Declared in one place: what only one of them has is its own."""
    options = {
        name: {option.opts[0]: option for option in evaluate.commands[name].params if isinstance(option, click.Option)}
        for name in ("line", "barrier")
    }
    assert options["line"].keys() - options["barrier"].keys() == {"--also", "--head", "--adaptive"}
    assert options["barrier"].keys() <= options["line"].keys()
    for name, option in options["barrier"].items():
        if name != "--help":
            assert option.to_info_dict() == options["line"][name].to_info_dict()
