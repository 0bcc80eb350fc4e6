"""Interpolation from the start of training: each point is a merge, and what is known of the head's start is said."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from click.testing import CliRunner
from tiny import NLI, bert_config, random_tensors, save_checkpoint

import evals
import merge
from evals.commands.evaluate_models import evaluate
from evals.run.surface.start import read_start
from merge.checkpoints.open import open_base, open_encoder
from merge.errors import MergeError

SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
ROWS = [
    {"premise": f"the {word} saw a lawyer .", "hypothesis": "a lawyer helped .", "label": NLI[k % 3]}
    for k, word in enumerate(["doctor", "lawyer", "river", "near"] * 3)
]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("zoo")
    for seed, name in enumerate(("start", "final", "run/checkpoint-5", "run/checkpoint-40")):
        save_checkpoint(root / name, bert_config(**SMALL), seed=seed)
    base = bert_config("BertModel", **SMALL)
    save_checkpoint(root / "pretrained", base, tensors=random_tensors(base, 7, torch.float32))
    save_checkpoint(root / "wide", bert_config(**{**SMALL, "intermediate_size": 16}), seed=0)
    (root / "run-without").mkdir()
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return root


def record(zoo: Path, init: str, final: str, **options: Any) -> dict[str, Any]:
    return evals.monotonic(zoo / init, zoo / final, task="mnli", data=ROWS, points=3, **options).record


def test_the_middle_of_the_line_is_the_merge_of_start_and_end(zoo: Path) -> None:
    (line,) = record(zoo, "start", "final", gauss_rows=3)["lines"]
    merged = merge.merge([zoo / "start", zoo / "final"], method="linear")
    expected = [
        evals.score(model, "mnli", data=ROWS)[0]["loss"] for model in (zoo / "start", merged.checkpoint, zoo / "final")
    ]
    assert line["loss"] == pytest.approx(expected, rel=1e-5)
    rises = [b - a for k, a in enumerate(expected) for b in expected[k + 1 :]]
    assert line["delta"] == pytest.approx(max(0.0, *rises), abs=1e-6)
    assert line["gauss"]["rows"] == 3


def test_only_a_model_without_forward_derivatives_has_no_gauss_length(
    zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest of the record is there, with a note; a machine without memory is another fault, and is not called that."""
    fault: list[Exception] = [NotImplementedError("forward AD with scan is not implemented")]

    def gauss_length(*_: object) -> None:
        raise fault[0]

    monkeypatch.setattr("evals.paths.surface.arc.gauss_length", gauss_length)
    made = record(zoo, "start", "final", gauss_rows=3)
    assert made["lines"][0]["gauss"] is None
    assert any("has no forward derivative (forward AD with scan" in note for note in made["notes"])
    for words in (
        "not enough memory: you tried to allocate 9 bytes",
        "mat1 and mat2 of the forward pass have no shape in common",
    ):
        fault[0] = RuntimeError(words)
        with pytest.raises((RuntimeError, MergeError), match=words[:17]):
            record(zoo, "start", "final", gauss_rows=3)

    def no_derivative(*_: object) -> None:
        raise fault[0]

    monkeypatch.setattr("evals.paths.surface.arc.turning_rate", no_derivative)
    made = record(zoo, "start", "final", gauss_rows=3)
    assert any(
        "runs, and its forward derivative fails even on one row (mat1 and mat2" in note for note in made["notes"]
    )


@pytest.mark.slow
def test_the_gauss_length_is_that_of_finite_differences(zoo: Path) -> None:
    """The same integral with tangents from logits of merged checkpoints' weights in float64, on a fine grid."""
    (line,) = evals.monotonic(zoo / "start", zoo / "final", task="mnli", data=ROWS[:2], points=41, gauss_rows=2).record[
        "lines"
    ]
    models = [
        transformers.AutoModelForSequenceClassification.from_pretrained(zoo / n).double() for n in ("start", "final")
    ]
    tokenizer = transformers.AutoTokenizer.from_pretrained(zoo / "start")
    batch = tokenizer(
        [r["premise"] for r in ROWS[:2]], [r["hypothesis"] for r in ROWS[:2]], return_tensors="pt", padding=True
    )
    a, b = (dict(model.named_parameters()) for model in models)
    logits = []
    with torch.no_grad():
        for k in range(1001):
            weights = {name: torch.lerp(a[name], b[name], k / 1000) for name in a}
            logits.append(torch.func.functional_call(models[0], weights, (), dict(batch)).logits)
    steps = torch.stack(logits).diff(dim=0)
    tangents = steps / steps.norm(dim=2, keepdim=True)
    turned = 2 * torch.asin((tangents.diff(dim=0).norm(dim=2) / 2).clamp(max=1)).sum(0)
    assert line["gauss"]["mean"] == pytest.approx(float(turned.mean()), rel=0.02)


def test_the_checkpoints_of_a_run_give_a_line_each_and_the_way_travelled(zoo: Path) -> None:
    made = record(zoo, "start", "run", gauss_rows=0)
    assert [line["name"] for line in made["lines"]] == ["run/checkpoint-5", "run/checkpoint-40"]
    flat = [
        torch.cat([p.double().flatten() for p in open_encoder(str(zoo / name)).state_dict().values()])
        for name in ("start", "run/checkpoint-5", "run/checkpoint-40")
    ]
    steps = [float((b - a).norm()) for a, b in pairwise(flat)]
    assert made["travelled"] == pytest.approx(sum(steps), rel=1e-5)
    assert made["lines"][1]["distance"] == pytest.approx(float((flat[2] - flat[0]).norm()), rel=1e-5)
    assert made["lines"][1]["relative_distance"] == pytest.approx(
        float((flat[2] - flat[0]).norm() / flat[0].norm()), rel=1e-5
    )


def test_a_head_that_is_drawn_is_the_one_transformers_draws(zoo: Path) -> None:
    final = open_encoder(str(zoo / "final"))
    start = read_start(open_base(str(zoo / "pretrained")), final, head_seed=3)
    torch.manual_seed(3)
    expected = transformers.AutoModelForSequenceClassification.from_pretrained(
        zoo / "pretrained", id2label=dict(enumerate(NLI)), label2id={n: k for k, n in enumerate(NLI)}
    ).state_dict()
    assert {final.written_name(name) for name in start.weights} == set(expected)
    assert all(torch.equal(start.weights[name], expected[final.written_name(name)]) for name in start.weights)
    other = read_start(open_base(str(zoo / "pretrained")), final, head_seed=4)
    assert not torch.equal(start.weights["classifier.weight"], other.weights["classifier.weight"])


def test_a_head_whose_start_is_unknown_is_said_to_be_and_kept(zoo: Path) -> None:
    """The loss at the start is that of the pretrained encoder under the final model's head."""
    made = record(zoo, "pretrained", "final", gauss_rows=0)
    assert made["head"].startswith("the head's start is unknown:")
    assert made["head"] in made["notes"]
    base, final = open_base(str(zoo / "pretrained")).state_dict(), open_encoder(str(zoo / "final")).state_dict()
    mixed = {**final, **base}
    save_checkpoint(zoo / "mixed", bert_config(**SMALL), tensors=mixed)
    assert made["lines"][0]["loss"][0] == pytest.approx(
        evals.score(zoo / "mixed", "mnli", data=ROWS)[0]["loss"], rel=1e-5
    )
    drawn = record(zoo, "pretrained", "final", gauss_rows=0, head_seed=0)
    assert "drawn" in drawn["head"]
    assert drawn["lines"][0]["distance"] > made["lines"][0]["distance"]


@pytest.mark.parametrize(
    ("init", "final", "options", "message"),
    [
        ("start", "run-without", {}, "run-without holds neither a checkpoint"),
        ("wide", "final", {}, "wide is not what .*final .* was trained from: bert.encoder.layer.0.intermediate"),
        ("start", "start", {}, "the weights are the same; there is nothing to interpolate"),
        ("start", "final", {"head_seed": 1}, "--head-seed draws a head, and .* has its own"),
    ],
)
def test_what_is_no_line_is_one_line_of_text(
    zoo: Path, init: str, final: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(MergeError, match=message):
        record(zoo, init, final, **options)


@pytest.mark.slow
def test_the_command_prints_the_record_and_draws_it(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(zoo)
    words = [
        "monotonic",
        "start",
        "run",
        "--task",
        "mnli",
        "--data",
        "rows.jsonl",
        "--points",
        "5",
        "-o",
        str(tmp_path),
    ]
    done = CliRunner().invoke(evaluate, words)
    assert done.exit_code == 0, done.output
    assert "distance travelled" in done.stdout
    page = (tmp_path / "index.html").read_text()
    assert "From the start of training to its end" in page
    again = json.loads(CliRunner().invoke(evaluate, [*words, "--json", "-q"]).stdout)
    made = evals.monotonic("start", "run", task="mnli", data="rows.jsonl", points=5)
    assert [line["loss"] for line in made.record["lines"]] == [line["loss"] for line in again["lines"]]
    assert list(tmp_path.glob("monotonic-mnli-*.svg"))
