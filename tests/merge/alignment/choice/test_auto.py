"""--align auto: models of one start are kept as they are, others get the best of many alignments, chosen without labels."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts.test_aligners import make_pair
from families import canonical_tensors, inputs, written_name
from families_more import CASES
from random_transforms import random_transform
from safetensors.torch import load_file
from tiny import bert_config, random_tensors, save_checkpoint, write_text

from merge.alignment.choice.auto import Auto, agreed, folded_pair
from merge.alignment.choice.candidates import Candidate, Choice
from merge.alignment.pair import Alignment, Pair, in_canonical_form
from merge.checkpoints.open import open_checkpoint
from merge.checkpoints.structure import structure_of
from merge.commands.merge_models import main
from merge.errors import UsageError
from merge.recipe.recipe import make_recipe, read_recipe
from merge.run.report import Report
from merge.run.report_text import report_text
from merge.run.run import run
from merge.symmetry.architectures import spec_for
from merge.symmetry.canonical import fold_norms
from merge.symmetry.permutation import apply, identity, random, restrict
from merge.symmetry.transform import Transform, apply_transform, restrict_transform

CLASSIFIER = "BertForSequenceClassification"
EVERYTHING = "residual, heads, ffn, pooler"
FREE, ORDERS = Auto(), Auto(basis="permutation")


def made(planted: int | None, noise: float = 0.0, other: int = 0) -> tuple[Pair, Any]:
    """Return a pair of tiny classifiers with a little text, and what brings b back."""
    pair, back = make_pair(CLASSIFIER, planted_seed=planted, noise=noise, other_seed=other)
    return replace(pair, batches=pair.batches[:2]), back


def chosen(pair: Pair, auto: Auto = FREE) -> Choice:
    return auto(replace(pair, batches=()), lambda: pair)


def unread() -> Pair:
    raise AssertionError("text was asked for")


def test_one_start_is_kept_as_it_is_and_no_text_is_read() -> None:
    pair, _ = made(None, noise=0.1)
    choice = Auto()(replace(pair, batches=()), unread)
    assert choice.common
    assert choice.kept.alignment.permutation.is_identity
    assert [c.name for c in choice.candidates] == ["nothing"]
    assert choice.score is None


def test_unknown_axes_are_refused_for_models_of_one_start_too() -> None:
    """A word that is no kind of axis is a mistake, whether or not it would have been needed."""
    pair, _ = made(None, noise=0.1)
    with pytest.raises(UsageError, match="no axes 'ffnn'. Did you mean 'ffn'"):
        Auto(axes=frozenset({"ffnn"}))(replace(pair, batches=()), unread)
    assert Auto(axes=frozenset({"ffn"}))(replace(pair, batches=()), unread).common


def test_a_pair_in_canonical_form_carries_the_weights_that_are_merged() -> None:
    """The very tensors of the pair; one that is in no other form is itself."""
    pair, _ = made(None, other=5)
    compared = in_canonical_form(pair)
    merged = compared.as_merged
    assert all(merged.a[n] is pair.a[n] and merged.b[n] is pair.b[n] for n in pair.a)
    assert merged.merged is None
    assert merged.as_merged is merged
    assert pair.as_merged is pair
    assert any(not torch.equal(compared.a[n], pair.a[n]) for n in pair.a)


@pytest.fixture(scope="module")
def copies() -> Choice:
    """Return what is chosen for a model and its permuted copy."""
    return chosen(made(2)[0], ORDERS)


def test_a_permuted_copy_is_no_common_start_and_is_brought_back(copies: Choice) -> None:
    """The planted answer: its midpoint is the model itself, so nothing scores better than all axes at their places."""
    pair, back = made(2)
    with pytest.raises(AssertionError, match="text was asked for"):
        Auto()(replace(pair, batches=()), unread)
    choice = copies
    assert choice.kept.name == EVERYTHING
    assert choice.kept.score == pytest.approx(0, abs=1e-6)
    assert all(torch.equal(choice.kept.alignment.permutation.indices[a], back.indices[a]) for a in back.indices)
    assert {c.name for c in choice.candidates if (c.score or 0) < 1e-3} == {EVERYTHING}


@pytest.fixture(scope="module")
def strangers() -> Choice:
    """Return what is chosen for two models of different seeds."""
    return chosen(made(None, other=5)[0], ORDERS)


def test_strangers_get_a_table_with_nothing_in_it_and_the_least_score_is_kept(strangers: Choice) -> None:
    choice = strangers
    assert choice.start is not None
    assert not choice.common
    scores = [candidate.score for candidate in choice.candidates]
    assert choice.candidates[0].name == "nothing"
    assert choice.candidates[0].alignment.permutation.is_identity
    assert choice.kept.score == pytest.approx(min(score for score in scores if score is not None), abs=1e-6)
    assert {c.by for c in choice.candidates} >= {None, "activations", "weights"}
    assert {c.name for c in choice.candidates} == {"nothing", "pooler", "heads, ffn, pooler", EVERYTHING}
    header, *rows = choice.table()
    assert header[:2] == ("axes that move", "matched by")
    assert len(rows) == len(choice.candidates)


def test_weights_begin_at_activations_only_where_the_stream_moves(strangers: Choice) -> None:
    """Elsewhere weight matching ends in one place wherever it began, and the candidate would be one twice."""
    both = {c.name for c in strangers.candidates if c.by == "activations+weights"}
    assert both == {EVERYTHING}
    assert "heads, ffn, pooler" in {c.name for c in strangers.candidates if c.by == "weights"}


def test_the_same_pair_gets_the_same_choice(strangers: Choice) -> None:
    again = chosen(made(None, other=5)[0], ORDERS)
    assert again.table() == strangers.table()
    assert [c.score for c in again.candidates] == [c.score for c in strangers.candidates]


def test_no_alignment_is_scored_twice(copies: Choice) -> None:
    """Matchers that agree are one candidate: the first, which is the simplest."""
    found = [c.alignment for c in copies.candidates]
    keys = {tuple(index.numpy().tobytes() for index in alignment.permutation.indices.values()) for alignment in found}
    assert len(keys) == len(found)


def test_of_a_head_made_anew_only_the_head_is_moved() -> None:
    """Encoders of one start have their places; matching them again could only lose them."""
    pair, _ = made(None, noise=0.1)
    drawn = random(pair.spec, pair.shapes, torch.Generator().manual_seed(1))
    pair = replace(pair, b=apply(pair.spec, restrict(drawn, ["pooler"]), pair.b))
    choice = chosen(pair, ORDERS)
    assert [c.name for c in choice.candidates] == ["nothing", "pooler"]
    assert choice.kept.name == "pooler"


def test_axes_and_a_basis_that_are_asked_for_are_kept_to() -> None:
    pair, _ = made(None, other=5)
    choice = chosen(pair, Auto(axes=frozenset({"ffn"}), basis="permutation"))
    assert {c.name for c in choice.candidates} == {"nothing", "ffn"}
    assert {c.basis for c in choice.candidates} == {None, "permutation"}


def test_without_text_weights_move_everything_and_nothing_is_scored() -> None:
    pair, back = made(2)
    choice = chosen(replace(pair, batches=()))
    assert choice.score is None
    assert (choice.kept.by, choice.kept.name, choice.kept.score) == ("weights", EVERYTHING, None)
    assert all(torch.equal(choice.kept.alignment.permutation.indices[a], back.indices[a]) for a in back.indices)


@pytest.mark.slow
def test_bases_inside_heads_are_tried() -> None:
    """The planted answer is a rotation in every head, which no order of units undoes."""
    pair, _ = made(None)
    drawn = random_transform(pair.spec, pair.shapes, torch.Generator().manual_seed(3))
    inside = [axis for axis in drawn.maps if pair.spec.kind(axis) == "heads"]
    turned = Transform(identity(pair.spec, pair.shapes), restrict_transform(drawn, inside).maps)
    pair = replace(pair, b=apply_transform(pair.spec, turned, pair.b))
    choice = chosen(pair)
    assert choice.kept.basis == "orthogonal"
    assert choice.kept.score == pytest.approx(0, abs=1e-5)
    fixed = [c.score or 0 for c in choice.candidates if c.basis == "permutation"]
    assert fixed
    assert min(fixed) > 1e-3


def rotated_gpt2() -> tuple[dict[str, Any], Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]]:
    """Return a tiny GPT-2 and the same with its norms folded and its residual stream rotated."""
    config = dict(CASES["gpt2 untied"])
    spec, a = spec_for(config), canonical_tensors(config, 0, torch.float32)
    folded = fold_norms(spec, config, a)
    pair = folded_pair(Pair(spec, a, a, config, str))
    drawn = random_transform(pair.spec, pair.shapes, torch.Generator().manual_seed(1))
    turn = Transform(identity(pair.spec, pair.shapes), restrict_transform(drawn, ["residual"]).maps)
    return config, a, apply_transform(pair.spec, turn, folded.tensors)


@pytest.mark.slow
def test_the_stream_of_a_pre_norm_model_is_rotated_where_that_is_best() -> None:
    """Planted: folded and rotated, b is a; no permutation comes near. Without leave to rotate none is tried."""
    config, a, b = rotated_gpt2()
    structure = structure_of(config)
    batches = tuple(batch for seed in range(3) for batch in inputs(config, seed))
    pair = Pair(spec_for(config), a, b, config, lambda name: written_name(structure, name), batches)
    choice = chosen(pair, Auto(basis="permutation", rotate=True))
    assert choice.kept.rotated
    assert choice.kept.score == pytest.approx(0, abs=1e-5)
    assert "rotated residual" in choice.kept.name
    others = [c.score or 0 for c in choice.candidates if not c.rotated]
    assert min(others) > 0.01
    assert not any(c.rotated for c in chosen(pair, ORDERS).candidates)


@pytest.mark.slow
def test_a_run_folds_the_models_where_a_rotation_is_best(tmp_path: Path) -> None:
    """The merge of a and b rotated is a with its norms folded; the recipe that is written asks for auto, as it did."""
    config, a, b = rotated_gpt2()
    structure = structure_of(config)
    for name, tensors in (("a", a), ("b", b)):
        named = {written_name(structure, n): t for n, t in tensors.items()}
        save_checkpoint(tmp_path / name, {**config, "vocab_size": 18}, tensors=named)
    report = auto_run(tmp_path, text=write_text(tmp_path / "text.txt", 40))
    aligned = report.rebased.aligned[0]
    assert aligned.choice.kept.rotated
    assert aligned.proof.error < 1e-9
    assert report.recipe.align.residual is None
    assert read_recipe(tmp_path / "out" / "recipe.yaml").align == report.recipe.align
    assert any("gains of the norms were folded" in note for note in report.notes)
    merged = load_file(tmp_path / "out" / "model.safetensors")
    folded = fold_norms(spec_for(config), config, a).tensors
    assert all(torch.allclose(merged[written_name(structure, n)], t, atol=1e-4) for n, t in folded.items())


def candidates(*scores: float, rotated: float) -> Choice:
    """Return a choice of plain candidates and a rotated one."""
    empty = Alignment(identity(made(None)[0].spec, made(None)[0].shapes), (), ())
    found = [Candidate(empty, score) for score in scores] + [Candidate(empty, rotated, rotated=True)]
    return Choice(tuple(found), min(found, key=lambda c: c.score or 0), "score")


def test_a_rotation_is_kept_by_all_models_or_by_none() -> None:
    """Folded norms are written into the merge: one model cannot have them alone."""
    wins, loses = candidates(0.3, 0.2, rotated=0.1), candidates(0.3, 0.05, rotated=0.1)
    assert [c.kept.score for c in agreed([wins, wins])] == [0.1, 0.1]
    assert [c.kept.score for c in agreed([wins, loses])] == [0.2, 0.05]


def auto_run(folder: Path, text: Path | None = None) -> Report:
    """Return the report of a merge of a and b in a folder."""
    align = {"by": "auto", "basis": "permutation", **({} if text is None else {"text": str(text)})}
    models = [str(folder / name) for name in "ab"]
    return run(make_recipe({"models": models, "align": align, "output": str(folder / "out")}))


def fine_tune(a: Path, folder: Path, moved: bool = False) -> Path:
    """Write a model with a little noise on every weight, and its units in another order if asked."""
    opened = open_checkpoint(str(a))
    generator = torch.Generator().manual_seed(4)
    tensors = {name: opened.tensor(name) for name in opened.tensors}
    tensors = {n: t + 0.03 * t.std() * torch.randn(t.shape, generator=generator) for n, t in tensors.items()}
    if moved:
        spec = spec_for(opened.config)
        drawn = random(spec, opened.shapes, torch.Generator().manual_seed(1))
        tensors = apply(spec, restrict(drawn, set(drawn.indices) - spec.named), tensors)
    named = {opened.written_name(name): tensor for name, tensor in tensors.items()}
    return save_checkpoint(folder, bert_config(), tensors=named)


def test_a_run_of_fine_tunes_is_the_plain_average(tmp_path: Path) -> None:
    """And reads no text: not even that of the package is named."""
    a = save_checkpoint(tmp_path / "a")
    fine_tune(a, tmp_path / "b")
    report = auto_run(tmp_path)
    assert report.rebased.aligned[0].choice.common
    assert report.rebased.calibration is None
    merged, *ends = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "a", "b"))
    assert all(torch.allclose(t, (ends[0][n] + ends[1][n]) / 2, atol=1e-6) for n, t in merged.items())
    facts = json.loads((tmp_path / "out" / "merge.json").read_text())["alignment"][0]
    assert facts["common_start"]["common"]
    assert facts["kept"] == []
    card = (tmp_path / "out" / "README.md").read_text()
    assert "have a common start (100.0% of" in card
    assert not (tmp_path / "out" / "transform.safetensors").exists()


@pytest.mark.slow
def test_align_without_a_value_says_what_it_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line for fine-tunes; for others the table, which the card and the manifest hold too."""
    a = save_checkpoint(tmp_path / "a")
    fine_tune(a, tmp_path / "b")
    fine_tune(a, tmp_path / "c", moved=True)
    text = write_text(tmp_path / "text.txt", 60)
    monkeypatch.chdir(tmp_path)
    said = {}
    for other in "bc":
        arguments = ["a", other, "--align", "-o", f"out-{other}", "--text", str(text)]
        monkeypatch.setattr(sys, "argv", ["merge-models", *arguments])
        main()
        said[other] = capsys.readouterr()
    assert "one common start: 100.0% of" in said["b"].out
    assert "KL from ensemble" not in said["b"].out
    lines = said["c"].out.splitlines()
    table = [line for line in lines if line.startswith(("  nothing", "  pooler", "  heads", "  residual"))]
    assert sum(line.endswith("<- kept") for line in table) == 1
    assert next(line for line in table if line.endswith("<- kept")).startswith(f"  {EVERYTHING}")
    assert "rests on 60 texts only" in said["c"].err
    facts = json.loads((tmp_path / "out-c" / "merge.json").read_text())["alignment"][0]
    assert (facts["by"], facts["kept_by"]) == ("auto", "activations")
    assert {c["basis"] for c in facts["candidates"]} >= {None, "permutation"}
    card = (tmp_path / "out-c" / "README.md").read_text()
    assert "| axes | matched by | inside heads | KL from ensemble to midpoint | along the line |" in card


@pytest.mark.slow
def test_models_that_share_nothing_are_no_fine_tunes(tmp_path: Path) -> None:
    """The negative control of the run above: the same sizes, other seeds."""
    for seed, name in enumerate("ab"):
        save_checkpoint(tmp_path / name, tensors=random_tensors(bert_config(), seed, torch.float32))
    report = auto_run(tmp_path, write_text(tmp_path / "text.txt", 40))
    choice = report.rebased.aligned[0].choice
    assert not choice.common

    near = [c for c in choice.candidates if c.line is not None]
    assert 1 < len(near) < len(choice.candidates), "some are scored along the line, and not all"
    assert choice.kept.line == min(c.line for c in near if c.line is not None)
    card = (tmp_path / "out" / "README.md").read_text()
    rows = [
        line for line in card.splitlines() if line.endswith(tuple(f"| {c.score:.4f} | {c.line:.4f} |" for c in near))
    ]
    assert len(rows) == len(near)
    facts = json.loads((tmp_path / "out" / "merge.json").read_text())["alignment"][0]
    assert [c["line"] for c in facts["candidates"]] == [c.line for c in choice.candidates]
    assert "nothing moves:" not in report_text(report, False).partition("<- kept")[2]
    # Had nothing been kept, these would still be no fine-tunes.
    aligned, choice = report.rebased.aligned[0], report.rebased.aligned[0].choice
    assert choice.kept is not choice.candidates[0]
    still = Transform(identity(aligned.spec, open_checkpoint(str(tmp_path / "a")).shapes), {})
    other = replace(aligned, choice=replace(choice, kept=choice.candidates[0]), transform=still)
    said = report_text(replace(report, rebased=replace(report.rebased, aligned=(other,))), False)
    assert "nothing moves: at the midpoint, no candidate is closer" in said
    assert "share a basis" not in said
    assert report.rebased.calibration is not None
    assert "common start (" not in (tmp_path / "out" / "README.md").read_text()
