"""Simplexes grown from checkpoints: vertices as checkpoints, ensembles by hand, and runs that go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from captured_log import CapturedLog
from click.testing import CliRunner
from tiny import NLI, bert_config, save_checkpoint

import evals
import merge
from evals.commands.evaluate_models import evaluate
from merge.errors import MergeError

SMALL = bert_config(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12)
ROWS = [
    {"premise": f"the {word} saw a lawyer .", "hypothesis": "a lawyer helped .", "label": NLI[k % 3]}
    for k, word in enumerate(["doctor", "lawyer", "river", "near"] * 3)
]
TRAIN = [{**row, "premise": row["premise"].replace("saw", "helped")} for row in ROWS]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("zoo")
    for seed, name in enumerate("abc"):
        save_checkpoint(root / name, SMALL, seed=seed)
    for name, rows in (("rows", ROWS), ("train", TRAIN)):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def grown(zoo: Path, models: str, out: Path | None = None, **options: Any) -> dict[str, Any]:
    settings = {"vertices": 2, "samples": 2, "steps": 4, "rate": 1e-2, **options}
    sources = [zoo / name for name in models]
    return evals.simplex(sources, task="mnli", train=TRAIN, data=ROWS, output=out, **settings).record


def probabilities(folder: Path) -> torch.Tensor:
    """Return a model's probabilities by transformers alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(str(folder)).eval()
    with torch.no_grad():
        batches = [tokenizer(row["premise"], row["hypothesis"], return_tensors="pt") for row in ROWS]
        return torch.cat([model(**batch).logits for batch in batches]).double().softmax(1)


def test_the_deep_ensemble_and_the_average_are_those_by_hand(zoo: Path) -> None:
    record = grown(zoo, "ab", vertices=1, against=[zoo / "c"])
    rows = {row["name"]: row for row in record["ensembles"][0]["rows"]}
    gold = torch.tensor([NLI.index(row["label"]) for row in ROWS])
    for names in ("ab", "abc"):
        mean = torch.stack([probabilities(zoo / name) for name in names]).mean(0)
        made = rows[f"deep ensemble of {len(names)}"]
        assert made["nll"] == pytest.approx(float(-mean[torch.arange(12), gold].log().mean()), rel=1e-5)
        assert made["accuracy"] == pytest.approx(float((mean.argmax(1) == gold).double().mean()))
        assert made["passes"] == len(names)
        merged = merge.merge([zoo / name for name in names])
        average = evals.score(merged.checkpoint, "mnli", data=ROWS)[0]
        assert rows[f"average of {len(names)}"]["nll"] == pytest.approx(average["loss"], rel=1e-5)
    assert rows["all 2 simplexes"]["passes"] == 4
    assert rows["a"]["nll_change"] == 0.0
    assert rows["b"]["nll_change"] == pytest.approx(rows["b"]["nll"] - rows["a"]["nll"])


def test_vertices_are_checkpoints_with_the_loss_and_distances_of_the_record(zoo: Path, tmp_path: Path) -> None:
    record = grown(zoo, "a", tmp_path)
    (simplex,) = record["simplexes"]
    assert [each["dimension"] for each in simplex["dimensions"]] == [0, 1, 2]
    folder = tmp_path / record["checkpoints"]
    for number in (1, 2):
        loss = evals.score(folder / f"a-vertex{number}", "mnli", data=ROWS)[0]["loss"]
        assert simplex["dimensions"][number]["vertex_loss"] == pytest.approx(loss, rel=1e-5)
    places = [merge.load(str(each)).state_dict() for each in (zoo / "a", folder / "a-vertex1", folder / "a-vertex2")]
    flat = [torch.cat([tensor.double().flatten() for _, tensor in sorted(each.items())]) for each in places]
    assert simplex["dimensions"][1]["volume"] == pytest.approx(float((flat[1] - flat[0]).norm()), rel=1e-4)
    u, v = flat[1] - flat[0], flat[2] - flat[0]
    area = 0.5 * float((u @ u * (v @ v) - (u @ v) ** 2).sqrt())
    assert simplex["dimensions"][2]["volume"] == pytest.approx(area, rel=1e-3)
    merged = merge.merge([zoo / "a", folder / "a-vertex1", folder / "a-vertex2"])
    centre = evals.score(merged.checkpoint, "mnli", data=ROWS)[0]["loss"]
    assert simplex["dimensions"][2]["centre_loss"] == pytest.approx(centre, rel=1e-4)


def test_a_second_run_reads_the_vertices_and_a_further_vertex_is_trained_alone(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import evals.paths.surface.training as training

    labels: list[str] = []
    train = training.train_points

    def counted(*args: Any, **options: Any) -> Any:
        labels.append(args[-1])
        return train(*args, **options)

    monkeypatch.setattr(training, "train_points", counted)
    first = grown(zoo, "a", tmp_path, vertices=1)
    assert grown(zoo, "a", tmp_path, vertices=1) == first
    second = grown(zoo, "a", tmp_path, vertices=2)
    assert labels == ["growing a-vertex1", "growing a-vertex2"]
    assert (
        second["simplexes"][0]["dimensions"][1]["vertex_loss"] == first["simplexes"][0]["dimensions"][1]["vertex_loss"]
    )


def test_a_damaged_record_is_measured_again_from_its_vertices(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, captured_log: CapturedLog
) -> None:
    first = grown(zoo, "a", tmp_path, vertices=1)
    path = tmp_path / "results.json"
    damaged = json.loads(path.read_text())
    damaged["results"][0]["simplexes"][0]["dimensions"] = 1
    path.write_text(json.dumps(damaged))
    monkeypatch.setattr("evals.paths.surface.training.train_points", None)
    again = grown(zoo, "a", tmp_path, vertices=1)
    assert again["simplexes"] == first["simplexes"]
    assert json.loads(path.read_text())["results"][0]["simplexes"] == first["simplexes"]
    assert [line for line in captured_log.messages if "measured again where it is asked for: simplex (" in line]


def test_shared_vertices_join_all_models(zoo: Path, tmp_path: Path) -> None:
    record = grown(zoo, "ab", tmp_path, kind="spro", vertices=1)
    assert [simplex["name"] for simplex in record["simplexes"]] == ["a", "b"]
    assert [path.name for path in (tmp_path / record["checkpoints"]).iterdir()] == ["shared-vertex1"]
    losses = [simplex["dimensions"][1]["vertex_loss"] for simplex in record["simplexes"]]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "--train", "train.jsonl", "--kind", "spro"], "joins several models"),
        (["a"], "--train names the labelled rows"),
        (["a", "--train", "train.jsonl", "--also", "=x"], "--also expects TASK or TASK=DATA"),
    ],
)
def test_what_is_no_simplex_is_one_line(
    zoo: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(zoo)
    done = CliRunner().invoke(evaluate, ["simplex", *words, "--task", "mnli", "--data", "rows.jsonl"])
    assert isinstance(done.exception, MergeError)
    assert message in str(done.exception)


@pytest.mark.slow
def test_the_command_prints_and_draws_every_table(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(zoo)
    words = "simplex a b --task mnli --train train.jsonl --data rows.jsonl --train-steps 2 --vertices 1 --samples 2"
    also = ["--also", "hans=hans.tsv", "-o", str(tmp_path)]
    header = (
        "gold_label sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse sentence1 sentence2 "
    )
    rows = [[*["non-entailment", *"....", "the doctor saw", "a lawyer saw", f"ex{k}", *HANS]] for k in range(3)]
    table = ["\t".join([*header.split(), "pairID", "heuristic", "subcase", "template"]), *map("\t".join, rows)]
    Path("hans.tsv").write_text("\n".join(table) + "\n")
    done = CliRunner().invoke(evaluate, [*words.split(), *also])
    assert done.exit_code == 0, (done.output, done.exception)
    assert done.stdout.count("deep ensemble of 2") == 2
    assert "Simplexes of low loss" in (tmp_path / "index.html").read_text()


HANS = ("lexical_overlap", "ln_passive", "temp20")
