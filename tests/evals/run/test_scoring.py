"""Many models on many tasks: each as it would be scored alone, none twice, and what is left out is printed."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import NLI, WORDS, bert_config, random_tensors, save_checkpoint
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from evals.commands.evaluate_models import evaluate
from evals.heuristics.files import read_pairs, read_predictions
from evals.heuristics.grammar import generate
from evals.heuristics.scores import official_text
from evals.heuristics.scores import score as hans_table
from evals.predict import predictor
from evals.predict.predictor import make_predictor
from evals.results.predictions import read_predictions_table
from evals.tasks.hans import HANS
from merge.checkpoints.open import open_checkpoint
from merge.errors import TaskError, UsageError

Scores = Callable[..., list[dict[str, Any]]]
LABELS = {
    "mnli/validation_matched.jsonl": NLI,
    "rte/validation.jsonl": ("entailment", "not_entailment"),
    "sst2/validation.jsonl": ("negative", "positive"),
}
HEAD = ("classifier.weight", "classifier.bias")


def sentence(generator: random.Random) -> str:
    return " ".join(generator.choices(WORDS[:11], k=generator.randint(2, 9)))


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of models, of which a and b infer and the third feels, and rows of three tasks and of HANS."""
    root, generator = tmp_path_factory.mktemp("zoo"), random.Random(0)
    save_checkpoint(root / "larger", bert_config(intermediate_size=48), seed=3)
    save_checkpoint(root / "sentiment", bert_config(labels=("negative", "positive")), seed=3)
    save_checkpoint(root / "topics", bert_config(labels=("sport", "politics")), seed=3)
    for name, known in LABELS.items():
        columns = ("sentence",) if name.startswith("sst2") else ("sentence1", "sentence2")
        rows = [
            {**{column: sentence(generator) for column in columns}, "label": generator.choice(known)} for _ in range(80)
        ]
        (root / "data" / name).parent.mkdir(parents=True)
        (root / "data" / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    keys = {"pairID": "pair_id"} | {
        k: k for k in ("premise", "hypothesis", "label", "heuristic", "subcase", "template")
    }
    pairs = [{key: getattr(pair, name) for key, name in keys.items()} for pair in generate(per_subcase=2)]
    (root / "hans.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    for seed, name in enumerate("ab"):
        save_checkpoint(root / name, tensors=undecided(seed, root))
    return root


def undecided(seed: int, root: Path) -> dict[str, torch.Tensor]:
    """Return weights of a model that says each class of some HANS pairs: no logit is larger on most of them."""
    tensors = random_tensors(bert_config(), seed, torch.float32)
    made = make_predictor(open_checkpoint(str(save_checkpoint(root / f"raw{seed}", tensors=tensors))))
    logits = made.logits(made.encode(HANS.read(root / "hans.jsonl", 0)))
    return tensors | {HEAD[1]: tensors[HEAD[1]] - logits.median(0).values}


def typed(*words: object) -> None:
    evaluate.main([str(word) for word in words], prog_name="evaluate-models", standalone_mode=False)


@pytest.fixture
def scores(capsys: pytest.CaptureFixture[str]) -> Scores:
    """Return a function that runs a command and returns its records, without their seconds."""

    def run(*words: object) -> list[dict[str, Any]]:
        capsys.readouterr()
        typed(*words, "--json", "-q")
        return [{k: v for k, v in record.items() if k != "seconds"} for record in json.loads(capsys.readouterr().out)]

    return run


def said_of(records: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(record["task"], Path(record["model"]["name"]).name) for record in records]


# ---- which tasks ----


@pytest.mark.slow
def test_all_is_every_task_that_fits_and_each_is_scored_as_alone(zoo: Path, scores: Scores) -> None:
    """By task and then by model; what a record holds does not depend on what else was scored."""
    found = scores("glue", "all", zoo / "a", zoo / "sentiment", zoo / "b", "--data", zoo / "data")
    due = [("sst2", "sentiment"), ("mnli", "a"), ("mnli", "b"), ("rte", "a"), ("rte", "b")]
    assert said_of(found) == due
    alone = [scores("glue", task, zoo / model, "--data", zoo / "data")[0] for task, model in due]
    assert found == alone
    assert found != alone[::-1]


def test_what_all_leaves_out_is_said(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A task that does not fit, for whom; and one that the folder has no rows of. What was scored is not among it."""
    typed("glue", "all", zoo / "a", zoo / "sentiment", "--data", zoo / "data")
    notes = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert f"note: sst2 is left out for {zoo / 'a'}: its classes are negative, positive" in notes
    assert (
        f"note: mnli is left out for {zoo / 'sentiment'}: its classes are entailment, neutral, contradiction" in notes
    )
    assert f"note: mnli_mismatched is left out: {zoo / 'data'} has no rows for it" in notes
    assert f"note: stsb is left out for {zoo / 'a'}, {zoo / 'sentiment'}: it asks for a number" in notes
    assert not any(line.startswith(f"note: {task} is left out: ") for task in ("mnli", "rte", "sst2") for line in notes)


def test_several_tasks_by_name_are_scored_once_each_in_their_order(zoo: Path, scores: Scores) -> None:
    """Of other kinds than GLUE's too, by the command that takes them."""
    found = scores("score", "rte,mnli,rte", zoo / "a", "--data", zoo / "data")
    assert said_of(found) == [("rte", "a"), ("mnli", "a")]
    assert found == scores("glue", "rte, mnli", zoo / "a", "--data", zoo / "data")


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (("score", "mnli,sst2", "a", "--data", "data"), TaskError, "sst2"),
        (
            ("glue", "all", "topics", "--data", "data"),
            TaskError,
            "^topics fits none of the 10 tasks; of cola: .* sport",
        ),
        (("glue", "all", "a", "topics", "--data", "data"), TaskError, "^topics fits none of the 10 tasks"),
        (
            ("glue", "mnli,rte", "a", "--data", "data/rte/validation.jsonl"),
            UsageError,
            "is not a folder; several tasks are read from a folder",
        ),
        (("glue", "all", "a", "--data", "data/rte"), TaskError, "no task is left to score"),
        (("glue", "mnli,", "a", "--data", "data"), UsageError, "expects names separated by commas"),
        (("glue", "mnli,hans", "a", "--data", "data"), UsageError, "unknown task 'hans' of GLUE"),
        (("glue", "all", "--data", "data"), UsageError, "no models given"),
    ],
)
def test_what_cannot_be_scored_is_one_line(
    words: tuple[str, ...], error: type[Exception], message: str, zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that was named must fit every model, and a model one task at least: otherwise it was not meant."""
    monkeypatch.chdir(zoo)
    if words[-1] == "data/rte":
        (zoo / "data" / "rte" / "validation.jsonl").rename(zoo / "kept.jsonl")
    try:
        with pytest.raises(error, match=message):
            typed(*words)
    finally:
        if (zoo / "kept.jsonl").is_file():
            (zoo / "kept.jsonl").rename(zoo / "data" / "rte" / "validation.jsonl")


# ---- models ----


def test_alike_models_share_one_in_memory(zoo: Path, scores: Scores, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one only brings its weights, and is scored as if it had been built: other sizes are another model."""
    made: list[str] = []
    whole = predictor.make_predictor
    monkeypatch.setattr(
        predictor, "make_predictor", lambda *given: made.append(Path(given[0].source).name) or whole(*given)
    )
    words = ("--data", zoo / "data")
    found = scores("score", "mnli,rte", zoo / "a", zoo / "b", zoo / "larger", *words)
    assert made == ["a", "larger"]
    assert said_of(found) == [(task, model) for task in ("mnli", "rte") for model in ("a", "b", "larger")]
    assert [found[k] for k in (1, 4)] == scores("score", "mnli,rte", zoo / "b", *words)
    assert found[0]["scores"] != found[1]["scores"]


def test_one_model_under_two_names_is_run_once(zoo: Path, tmp_path: Path, scores: Scores) -> None:
    """Content decides; each is told by its own name."""
    config = json.loads((zoo / "a" / "config.json").read_text(encoding="utf-8"))
    twin = save_checkpoint(tmp_path / "twin", config, tensors=load_file(zoo / "a" / "model.safetensors"))
    first, second = scores("score", "mnli", zoo / "a", twin, "--data", zoo / "data")
    assert first["key"] == second["key"]
    assert second["model"]["name"] == str(twin)
    assert {**first, "model": None} == {**second, "model": None}


def test_six_orders_of_the_classes_give_one_hans_table(zoo: Path, tmp_path: Path, scores: Scores) -> None:
    """Rows of the head and names permuted together are one model. The control: the same rows under names that stay."""
    tensors = load_file(zoo / "a" / "model.safetensors")
    folders = []
    for order in permutations(range(3)):
        moved = tensors | {name: tensors[name][list(order)] for name in HEAD}
        config = bert_config(labels=tuple(NLI[k] for k in order))
        folders.append(save_checkpoint(tmp_path / "".join(map(str, order)), config, tensors=moved))
    rolled = tensors | {name: tensors[name].roll(1, 0) for name in HEAD}
    folders.append(save_checkpoint(tmp_path / "wrong", bert_config(), tensors=rolled))
    *tables, wrong = [record["hans"] for record in scores("hans", *folders, "--data", zoo / "hans.jsonl")]
    assert len(tables) == 6
    assert all(table == tables[0] for table in tables)
    assert wrong != tables[0]


# ---- forms ----


def test_a_csv_table_holds_the_records_and_stands_alone(
    zoo: Path, scores: Scores, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("score", "mnli,rte", zoo / "a", zoo / "b", "--data", zoo / "data")
    due = [(r["task"], r["model"]["name"], r["scores"]) for r in scores(*words)]
    typed(*words, "--table", "csv")
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [(row["task"], row["model"]) for row in rows] == [(task, model) for task, model, _ in due]
    for row, (_, _, found) in zip(rows, due, strict=True):
        assert {name: float(row[name]) for name in found} == pytest.approx(found, abs=5e-5)


def test_a_markdown_table_holds_the_same_cells(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A head, a line of dashes, and a row a model."""
    words = ("score", "mnli", zoo / "a", zoo / "b", "--data", zoo / "data", "--table")
    typed(*words, "csv")
    cells = [row[:3] for row in csv.reader(capsys.readouterr().out.splitlines())]
    typed(*words, "markdown")
    head, dashes, *rows = capsys.readouterr().out.splitlines()
    assert set(dashes) <= set("|-: ")
    found = [[cell.strip().replace("\\", "") for cell in line.strip("|").split(" | ")][:3] for line in (head, *rows)]
    assert len(found) == 3
    assert found == cells


def test_tables_of_hans_are_parted_by_an_empty_line(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed("hans", zoo / "a", "--data", zoo / "hans.jsonl", "--detail", "--table", "csv")
    parts = capsys.readouterr().out.split("\n\n")
    assert [len(part.strip().splitlines()) for part in parts] == [2, 31, len(parts[2].strip().splitlines())]
    assert len(parts) == 3


def test_two_formats_of_one_output_are_refused(zoo: Path) -> None:
    with pytest.raises(UsageError, match="--table csv and --json are two formats of one output"):
        typed("score", "mnli", zoo / "a", "--data", zoo / "data", "--table", "csv", "--json")


# ---- how it is computed ----


def test_half_precision_is_asked_for_and_its_changed_decisions_are_counted(
    zoo: Path, tmp_path: Path, scores: Scores
) -> None:
    """Counted by transformers alone on every row; both results are kept, and float32 says nothing of the kind."""
    words = ("score", "mnli", zoo / "a", "--data", zoo / "data", "-o", tmp_path)
    (exact,), (rounded,) = scores(*words), scores(*words, "--dtype", "bfloat16")
    assert exact["key"] != rounded["key"]
    assert (exact.get("dtype"), rounded["dtype"]) == (None, "bfloat16")
    assert not any("decided otherwise" in note for note in exact["notes"])
    decided, logits = {}, {}
    for dtype in (torch.float32, torch.bfloat16):
        model = AutoModelForSequenceClassification.from_pretrained(zoo / "a", dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(zoo / "a")
        text = (zoo / "data/mnli/validation_matched.jsonl").read_text(encoding="utf-8")
        rows = [json.loads(line) for line in text.splitlines()]
        with torch.no_grad():
            raw = [model(**tokenizer(r["sentence1"], r["sentence2"], return_tensors="pt")).logits[0] for r in rows]
        logits[dtype] = torch.stack(raw).float()
        decided[dtype] = logits[dtype].argmax(1)
    (note,) = [note for note in rounded["notes"] if "decided otherwise" in note]
    tables = [read_predictions_table(tmp_path / record["predictions"]) for record in (exact, rounded)]
    changed = int((tables[0].logits.argmax(1) != tables[1].logits.argmax(1)).sum())
    assert f"computed in bfloat16: {changed} of 80 rows" in note
    assert abs(changed - int((decided[torch.float32] != decided[torch.bfloat16]).sum())) <= 2  # batched, it rounds anew
    assert float(abs(tables[0].logits - logits[torch.float32].numpy()).max()) < 1e-5
    difference = abs(tables[1].logits - logits[torch.float32].numpy()).max()
    assert 1e-4 < difference < 0.2


def test_without_the_cache_no_tokens_are_kept(
    zoo: Path, tmp_path: Path, scores: Scores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the scores are the same; the control is the same command without the option."""
    monkeypatch.setenv("MERGE_MODELS_CACHE", str(tmp_path))
    words = ("score", "mnli", zoo / "a", "--data", zoo / "data")
    without = scores(*words, "--no-cache")
    assert list(tmp_path.rglob("*.safetensors")) == []
    assert scores(*words) == without
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1


@pytest.mark.parametrize("device", ["meta", "toaster"])
def test_a_device_that_cannot_be_used_is_refused_before_anything_is_read(device: str) -> None:
    """As merge-models refuses it: meta has no numbers."""
    with pytest.raises(UsageError, match=f"--device {device} cannot be used: "):
        typed("score", "mnli", "no/such/model", "--device", device)


# ---- the authors' prediction file ----


@pytest.mark.slow
def test_written_predictions_are_what_the_authors_scorer_reads(
    zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line a pair; scored as a file they print what the model's own scores print. From the folder, the same bytes."""
    words = ("hans", zoo / "a", "--data", zoo / "hans.jsonl", "-o", tmp_path / "report", "--format", "official")
    typed(*words, "--write-predictions", tmp_path / "predictions.txt", "-q")
    printed = capsys.readouterr().out
    text = (tmp_path / "predictions.txt").read_text(encoding="utf-8")
    assert text.splitlines()[0] == "pairID,gold_label"
    assert len(text.splitlines()) == 61
    table = hans_table(read_pairs(zoo / "hans.jsonl"), read_predictions(tmp_path / "predictions.txt"))
    assert official_text(table) == printed
    typed(*words, "--write-predictions", tmp_path / "again.txt", "-q")
    assert (tmp_path / "again.txt").read_text(encoding="utf-8") == text
    typed("hans", zoo / "b", *words[2:4], "--write-predictions", tmp_path / "other.txt", "-q")
    assert (tmp_path / "other.txt").read_text(encoding="utf-8") != text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a", "b"), "--write-predictions writes those of one model; found 2"),
        (("--predictions", "preds.txt"), "it takes no --write-predictions"),
    ],
)
def test_written_predictions_are_one_models(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        typed("hans", *words, "--write-predictions", tmp_path / "predictions.txt")
    assert list(tmp_path.iterdir()) == []
