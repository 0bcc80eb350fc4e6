"""evals.lesion and evals.linearity, and their commands: scores, floors, families, stored records, pages, bad input."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import layered
import pytest
import torch
from classifier_families import LOOKED_INSIDE
from click.testing import CliRunner, Result
from slotted_models import config_of
from tiny import NLI, bert_config, save_checkpoint, save_tokenizer, write_text

import evals
from evals.commands.evaluate_models import evaluate
from evals.run.inside.subject import Subject
from evals.surgery.slots import Pass
from evals.tasks import find_task
from evals.tasks.label_names import MatchedTask
from evals.tasks.task import Rows
from merge.checkpoints.inputs import Encoded
from merge.errors import MergeError, UsageError

# Of every kind that the table of layers has, with one text input.
FAMILIES = (*LOOKED_INSIDE, "gpt_neox", "gemma2")
TEXTS = [
    "the doctor saw a lawyer .",
    "a lawyer helped",
    "who saw the river .",
    "the river near a doctor and a lawyer .",
]
ROWS = [
    {"premise": TEXTS[k % 4], "hypothesis": TEXTS[(k + k // 4) % 4], "label": NLI[k % 3 if k % 5 else 0]}
    for k in range(24)
]
SHORT: dict[str, Any] = {"draws": 1, "reorders": 1, "paths": 1, "path_texts": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("studies") / "model", bert_config())


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_answers_both_commands(family: str, tmp_path: Path) -> None:
    """All parts of each, on text; a fit whose text is too short says so, in the family's own width."""
    save_checkpoint(tmp_path, config_of(family, 2))
    save_tokenizer(tmp_path)
    study = evals.lesion(tmp_path, text=TEXTS * 2, **SHORT)
    parts = {variant["part"] for variant in study.models}
    assert parts == {"floor", "layers", "sublayers", "orders", "duplicates"}
    assert study.whole["cosine"] == pytest.approx(1.0)
    assert study.record["paths"]["counts"] == ([1, 4, 4] if family == "gpt_neox" else [1, 4, 6, 4, 1])
    assert study.record["cost"]["check"]["largest"] == 0
    assert max(study.scores("layers").values()) < 1 - 1e-6
    linear = evals.linearity(tmp_path, text=TEXTS * 8, draws=1, cumulative=False)
    assert len(linear.record["components"]) == 2 * 5
    assert linear.scores("swaps")["layers in their order"] == linear.whole["cosine"]


def test_the_whole_model_and_the_identity_order_have_the_scores_of_the_task(model: Path) -> None:
    """As evals.score gives them; a model without a layer does not (the control)."""
    rows = {"task": "mnli", "data": ROWS}
    study = evals.lesion(model, only=["layers", "orders"], **{**SHORT, "reorders": 2}, **rows)
    expected = evals.score(model, "mnli", data=ROWS)[0]
    order = study.models[3]
    assert order["name"] == "layers in their order"
    assert order["scores"] == study.whole
    assert (order["change"], order["standard_error"]) == (0, 0)
    assert study.whole["accuracy"] == expected["accuracy"]
    assert study.whole["loss"] == pytest.approx(expected["loss"], abs=1e-6)
    assert all(loss != study.whole["loss"] for loss in study.scores("layers", score="loss").values())
    floor = study.record["floor"]
    gold = [row["label"] for row in ROWS]
    assert floor["name"] == "the most frequent class"
    assert floor["scores"]["accuracy"] == max(map(gold.count, NLI)) / len(gold)
    shares = [gold.count(name) / len(gold) for name in NLI]
    assert floor["scores"]["loss"] == pytest.approx(-sum(share * math.log(share) for share in shares))
    for each in study.models:  # worse is larger
        assert each["change"] == pytest.approx(each["scores"]["loss"] - study.whole["loss"], abs=1e-6)


def test_an_edited_model_has_the_scores_of_the_model_that_edit_layers_writes(model: Path, tmp_path: Path) -> None:
    import merge

    merge.edit(model, drop="0").save(tmp_path / "cut")
    expected = evals.score(tmp_path / "cut", "mnli", data=ROWS)[0]
    study = evals.lesion(model, task="mnli", data=ROWS, only=["layers"])
    assert study.scores("layers")["without layer 0"] == expected["accuracy"]
    assert study.scores("layers", score="loss")["without layer 0"] == pytest.approx(expected["loss"], abs=1e-6)


def test_a_planted_layer_matters_and_a_dead_one_does_not(tmp_path: Path) -> None:
    """GPT-2, whose layer 1 writes nothing: without it the cosine is 1 exactly, and its components have nothing to map."""
    from tiny import random_tensors

    config = config_of("gpt2", 2)
    tensors = random_tensors(config, 0, torch.float32)
    dead = [name for name in tensors if ".h.1." in name and "c_proj" in name]
    assert len(dead) == 4
    save_checkpoint(tmp_path, config, tensors={**tensors, **{name: torch.zeros_like(tensors[name]) for name in dead}})
    save_tokenizer(tmp_path)
    study = evals.lesion(tmp_path, text=TEXTS * 2, only=["layers", "sublayers"])
    alone, planted = study.scores("layers").values(), study.scores("sublayers")
    assert [value == study.whole["cosine"] for value in alone] == [False, True]
    assert [planted[f"layer 1 without {name}"] for name in ("attention", "ffn")] == [study.whole["cosine"]] * 2


@pytest.mark.slow
def test_components_are_frozen_removed_and_replaced_while_the_rest_learns(model: Path) -> None:
    study = evals.linearity(
        model, task="mnli", data=ROWS, train=ROWS, tune_rounds=3, rate=1e-3, only=["components"], limit=20
    )
    tuned = {each["name"]: each for each in study.record["tuned"]}
    assert len(tuned) == 1 + 6 + 2 * 3
    losses = {name: each["training_loss"] for name, each in tuned.items()}
    assert losses["the whole model learns"] < losses["attention of all layers frozen"]
    assert len(set(losses.values())) == len(losses)
    assert losses["the whole model learns"] < losses["attention of all layers removed"]


def test_a_stored_study_of_layers_is_read_again_and_stands_on_the_page(model: Path, tmp_path: Path) -> None:
    """One part and its figure; the slow test has every part."""
    text = str(write_text(tmp_path / "t.txt", 12))
    command = ["lesion", str(model), "--text", text, "--only", "layers", "--draws", "1", "-o"]
    first, second = (invoke(*command, str(tmp_path / "out"), *more) for more in ((), ("--json", "-q")))
    assert (first.exit_code, second.exit_code) == (0, 0), first.stderr
    record = json.loads(second.stdout)
    stored = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert [r["seconds"] for r in stored] == [record["seconds"]]  # computed once
    assert {".png", ".svg", ".csv", ".html", ".json"} <= {path.suffix for path in (tmp_path / "out").iterdir()}
    page = (tmp_path / "out" / "index.html").read_text()
    assert "Lesions" in page
    assert page.count("<svg") >= 1


@pytest.mark.slow
def test_a_stored_study_is_read_again_and_stands_on_the_page(model: Path, tmp_path: Path) -> None:
    text = str(write_text(tmp_path / "t.txt", 30))
    command = ["lesion", str(model), "--text", text, "--draws", "1", "--reorders", "1", "--paths", "1", "-o"]
    first, second = (invoke(*command, str(tmp_path / "out"), *more) for more in ((), ("--json", "-q")))
    assert (first.exit_code, second.exit_code) == (0, 0), first.stderr
    assert "equal bit for bit with cached prefixes and without" in first.stdout
    record = json.loads(second.stdout)
    stored = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert [r["seconds"] for r in stored] == [record["seconds"]]  # computed once
    made = {path.suffix for path in (tmp_path / "out").iterdir()}
    assert {".png", ".svg", ".csv", ".html", ".json"} <= made
    page = (tmp_path / "out" / "index.html").read_text()
    assert "Lesions" in page
    assert page.count("<svg") == 3
    assert "no layers" in page
    assert "the whole model on another text (no skill)" in page


@pytest.mark.slow
def test_the_command_of_linearity_prints_its_tables(model: Path, tmp_path: Path) -> None:
    text = str(write_text(tmp_path / "t.txt", 40))
    done = invoke(
        "linearity", str(model), "--text", text, "--draws", "1", "--no-cumulative", "-o", str(tmp_path / "out")
    )
    assert done.exit_code == 0, done.stderr
    for words in (
        "1 - cosine of the best linear map",
        "R2",
        "distance of two swapped layers",
        "Swapping",
        "least linear",
    ):
        assert words in done.stdout or words == "Swapping", words
    page = (tmp_path / "out" / "index.html").read_text()
    assert "Linearity and commutativity" in page
    assert page.count("<svg") == 3
    csv = invoke("linearity", str(model), "--text", text, "--only", "swaps", "--table", "csv", "-q").stdout
    assert csv.startswith("model,cosine,kl\n")


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(evaluate, list(arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "rows.jsonl"], "give --task too"),
        (["--task", "mnli", "--text", "t.txt"], "two sources of rows"),
        (["--task", "mnli", "--samples", "9"], "--samples has no effect with --task"),
        (["--score", "accuracy"], "--score names a score of a task"),
        (["--task", "mnli", "--data", "{rows}", "--score", "f1"], "mnli has no score 'f1'.*accuracy"),
        (["--text", "{text}", "--layers", "7"], "there is no layer 7; the model has 2, 0 to 1"),
        (["--text", "{text}", "--order", "0"], "layer 1 is missing"),
        (["--text", "{text}", "--only", "layers", "--order", "1,0"], "--order has no effect"),
        (["--text", "{text}", "--only", "layer"], "unknown part 'layer'"),
        (["--text", "{text}", "--stack", "encoder"], "only one list of layers"),
    ],
)
def test_bad_input_of_a_lesion_study_is_one_line(
    arguments: list[str], message: str, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    places = {"rows": str(tmp_path / "rows.jsonl"), "text": str(write_text(tmp_path / "t.txt", 6))}
    done = invoke("lesion", str(model), *(word.format(**places) for word in arguments), "-o", str(tmp_path / "out"))
    assert done.exit_code != 0
    assert isinstance(done.exception, MergeError)
    with pytest.raises(MergeError, match=message):
        raise done.exception
    assert "\n" not in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_gradients_of_a_task_are_those_of_the_loss_of_the_texts_of_the_batch() -> None:
    """Of a later batch, by the labels of its own rows; those of the first batch give another loss (the control)."""
    task = find_task("mnli")
    rows = Rows((), (0, 1, 2, 1), task.labels, "data", "split", ())
    matched = MatchedTask(task, rows, (0, 1, 2))
    subject = Subject(None, Encoded((), ((0, 1), (3, 2)), 0), None, {}, (), matched)  # type: ignore[arg-type]
    objective, words = subject.objective(1, 0)
    logits = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    done = Pass(SimpleNamespace(logits=logits), logits)
    expected, other = (-logits.log_softmax(1)[[0, 1], gold] for gold in ([1, 2], [0, 1]))
    torch.testing.assert_close(objective(done, {}), expected)
    assert not torch.allclose(expected, other)
    assert words == "the loss on mnli"


def test_families_that_cannot_be_lesioned_are_refused_with_the_reason(tmp_path: Path) -> None:
    """One outside the table of layers, one that reads images, and one without a tokenizer."""
    save_checkpoint(tmp_path / "fnet", {**bert_config("FNetModel"), "model_type": "fnet"})
    with pytest.raises(UsageError, match="the architecture is not in the table of layers"):
        evals.lesion(tmp_path / "fnet", text=TEXTS)
    vit = layered.checkpoint_of("vit")
    with pytest.raises(UsageError, match="works for models with one text input"):
        evals.lesion(vit, text=TEXTS)
    with pytest.raises(MergeError, match="has no tokenizer"):
        evals.linearity(layered.checkpoint_of("bert"), text=TEXTS)


def test_bad_input_of_a_linearity_study_is_one_line(model: Path, tmp_path: Path) -> None:
    for more, message in (
        ({"text": ["a doctor"] * 5}, "4 texts of the fit have 16"),
        ({"text": TEXTS, "train": ROWS}, "--train holds rows of a task"),
        ({"text": TEXTS, "fit": "close"}, "unknown fit 'close'.*closed"),
        ({"text": TEXTS, "only": ["swap"]}, "unknown part 'swap'.*swaps"),
        ({"text": TEXTS[:3]}, "leave none to judge|at least"),
    ):
        with pytest.raises(MergeError, match=message) as stop:
            evals.linearity(model, **more)  # type: ignore[arg-type]
        assert "\n" not in str(stop.value)
    with pytest.raises(TypeError, match="unexpected keyword argument 'dtype'"):
        evals.lesion(model, dtype="bfloat16")
