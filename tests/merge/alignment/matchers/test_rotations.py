"""Rotations in the run: what is written is a model of its kind, what is saved repeats it, and sweeps only climb."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import transformers
from contracts.test_aligners import make_pair
from families import canonical_tensors, joined, written_name
from families_more import CASES
from random_transforms import random_transform
from safetensors.torch import load_file
from tiny import bert_config, random_tensors, save_checkpoint, write_text

from merge.alignment.choice.auto import folded_pair
from merge.alignment.matchers import aligner, rotations
from merge.alignment.midpoint import score
from merge.alignment.pair import Alignment, Pair, Settings, in_canonical_form
from merge.checkpoints.inputs import random_inputs
from merge.checkpoints.open import open_checkpoint
from merge.checkpoints.structure import structure_of
from merge.errors import AlignmentError, RecipeError, SpecError
from merge.recipe.recipe import Recipe, make_recipe
from merge.run.run import run
from merge.symmetry.architectures import spec_for
from merge.symmetry.canonical import fold_norms
from merge.symmetry.transform import Transform, apply_transform, folded_spec, restrict_transform
from merge.symmetry.transform_files import load_transform, read_header

GPT2 = {**CASES["GPT2LMHeadModel"], "n_layer": 1}
ROTATION = {"by": "weights", "residual": "rotation"}


def recipe(*models: Path, output: Path, **align: object) -> Recipe:
    return make_recipe({"models": [str(m) for m in models], "output": str(output), "align": align})


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("gpt2")
    return save_checkpoint(root / "a", GPT2, seed=0), save_checkpoint(root / "b", GPT2, seed=1)


def gpt2_pair(layers: int = 1) -> Pair:
    """Return two GPT-2 with folded norms, as a rotation compares them."""
    config = {**GPT2, "n_layer": layers}
    a, b = (canonical_tensors(config, seed) for seed in (0, 1))
    pair = folded_pair(Pair(spec_for(config), a, b, config, str))
    return in_canonical_form(replace(pair, settings=Settings(basis="orthogonal")))


@pytest.mark.slow
def test_a_rotated_merge_is_the_average_of_folded_models_and_reloads(gpt2: tuple[Path, Path], tmp_path: Path) -> None:
    """By hand: fold both, move b by what was saved, average. The head is a tensor of its own, and the config says so."""
    report = run(recipe(*gpt2, output=tmp_path / "out", **ROTATION))
    merged = load_file(tmp_path / "out" / "model.safetensors")
    ends = []
    for folder in gpt2:
        opened = open_checkpoint(str(folder))
        ends.append(fold_norms(spec_for(opened.config), opened.config, opened.state_dict()))
    spec = folded_spec(spec_for(ends[0].config))
    saved = load_transform(spec, tmp_path / "out" / "transform.safetensors")
    assert saved.maps["residual"].shape == (24, 24)
    moved = apply_transform(spec, saved, ends[1].tensors)
    assert merged.keys() == ends[0].tensors.keys()
    assert all(torch.allclose(merged[n], (ends[0].tensors[n] + moved[n]) / 2, atol=1e-5) for n in merged)
    assert report.rebased.aligned[0].proof.error < 1e-9
    assert any("gains of the norms were folded" in note for note in report.notes)
    assert any("the output head is a tensor of its own now" in note for note in report.notes)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not torch.equal(model.lm_head.weight, model.transformer.wte.weight)
    assert model.config.tie_word_embeddings is False


@pytest.mark.slow
def test_a_saved_rotation_is_repeated_on_models_as_they_are(gpt2: tuple[Path, Path], tmp_path: Path) -> None:
    """The header of the file tells that norms have to be folded first; one that holds permutations folds nothing."""
    run(recipe(*gpt2, output=tmp_path / "first", **ROTATION))
    file = tmp_path / "first" / "transform.safetensors"
    again = run(recipe(*gpt2, output=tmp_path / "again", apply=str(file)))
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[n], second[n]) for n in first)
    assert any("gains of the norms were folded" in note for note in again.notes)
    run(recipe(*gpt2, output=tmp_path / "plain", by="weights", residual="permutation"))
    file = tmp_path / "plain" / "transform.safetensors"
    assert not read_header(file).maps
    repeated = run(recipe(*gpt2, output=tmp_path / "repeated", apply=str(file)))
    assert not any("folded" in note for note in repeated.notes)
    assert "lm_head.weight" not in load_file(tmp_path / "repeated" / "model.safetensors")


def test_a_file_that_is_no_transform_is_an_error_of_one_line(gpt2: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="is no transform"):
        run(recipe(*gpt2, output=tmp_path / "out", apply=str(gpt2[0] / "model.safetensors")))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("by", ["weights", "activations", "activations+weights"])
def test_bases_inside_heads_are_undone_in_a_run(by: str, tmp_path: Path) -> None:
    """b is a in another basis of every head and order of every axis: the merge is a. Orders alone do not give it back."""
    layers = 2 if by == "weights" else 1  # sweeps go over layers; the others match each at its own sites
    config = bert_config(num_hidden_layers=layers)
    a = save_checkpoint(tmp_path / "a", config)
    opened, spec = open_checkpoint(str(a)), spec_for(config)
    drawn = random_transform(spec, opened.shapes, torch.Generator().manual_seed(1))
    moved = apply_transform(
        spec, restrict_transform(drawn, set(drawn.permutation.indices) - spec.named), opened.state_dict()
    )
    b = save_checkpoint(tmp_path / "b", config, tensors={opened.written_name(n): t for n, t in moved.items()})
    asked = {"by": by, "text": str(write_text(tmp_path / "text.txt", 60)), "residual": "permutation"}
    report = run(recipe(a, b, output=tmp_path / "out", basis="orthogonal", **asked))
    run(recipe(a, b, output=tmp_path / "plain", **asked))
    original, merged, plain = (load_file(tmp_path / f / "model.safetensors") for f in ("a", "out", "plain"))
    shown = [n for n in original if not n.endswith("key.bias")]
    assert all(torch.allclose(merged[n], original[n], atol=2e-3) for n in shown)
    assert any(not torch.allclose(plain[n], original[n], atol=5e-2) for n in shown)
    assert {"qk0", f"v{layers - 1}", "pooler"} <= set(report.rebased.aligned[0].transform.maps)


@pytest.mark.parametrize("by", ["frank-wolfe", "sinkhorn", "annealing", "transport", "universe"])
@pytest.mark.parametrize("asked", [{"basis": "orthogonal"}, {"residual": "rotation"}])
def test_what_finds_permutations_alone_is_not_asked_for_maps(by: str, asked: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=f"by {by} finds permutations alone"):
        recipe(tmp_path / "a", tmp_path / "b", output=tmp_path / "out", by=by, **asked)


@pytest.mark.slow
def test_no_sweep_goes_down_and_maps_gain() -> None:
    """J is of weights as they are; what rotations reach permutations do not."""
    pair = gpt2_pair()
    found = aligner("weights")(pair)(frozenset(pair.kinds()))
    assert len(found.objective) > 3
    assert all(later >= earlier for earlier, later in pairwise(found.objective))
    moved = apply_transform(pair.spec, found.transform, pair.b)
    assert closeness(pair, moved) == pytest.approx(found.objective[-1], abs=1e-9)
    orders = replace(pair, spec=replace(pair.spec, groups={}), settings=Settings())
    plain = aligner("weights")(orders)(frozenset(orders.kinds()))
    assert closeness(pair, apply_transform(pair.spec, plain.transform, pair.b)) < found.objective[-1] - 0.1


def closeness(pair: Pair, b: dict[str, torch.Tensor]) -> float:
    """Return 1 - |A - B|^2 / (|A|^2 + |B|^2) over the tensors that move, vectors along heads and stream as they stand."""
    off = whole = 0.0
    for name, a in pair.a.items():
        axes = pair.spec.axes(name)
        if not any(axis.axis_names() for axis in axes):
            continue
        one, other = a, b[name]
        held = all(pair.spec.group(n) == "permutation" for axis in axes for n in axis.axis_names())
        kept = "residual" in axes[0].axis_names()  # a rotation that fixes the ones vector leaves the mean
        if a.ndim == 1 and (held or kept):
            one, other = one - one.mean(), other - other.mean()
        off += float((one - other).square().sum())
        whole += float(one.square().sum() + other.square().sum())
    return 1 - off / whole


def nearness_of_weights(pair: Pair) -> float:
    """Return 2 <A, B> / (|A|^2 + |B|^2) of a BERT as it stands; the labels' bias is left out, which lies on no axis that moves.

    Vectors are centred where no map changes their mean: biases of feed-forward units, gains of norms.
    """
    inner = squares = 0.0
    for name, tensor in pair.a.items():
        if name != "classifier.bias":
            one, other = (side.double().numpy() for side in (tensor, pair.b[name]))
            if name.endswith(("intermediate.dense.bias", "LayerNorm.weight")):
                one, other = one - one.mean(), other - other.mean()
            inner += 2 * float((one * other).sum())
            squares += float((one**2).sum() + (other**2).sum())
    return inner / squares


@pytest.mark.slow
@pytest.mark.parametrize(("by", "anew"), [("weights", False), ("weights", True), ("activations+weights", False)])
def test_sweeps_count_from_the_models_as_they_are(by: str, anew: bool) -> None:
    """b is a in noise: the identity's J comes first, also where sweeps begin there, and not what they made of it.

    They do where text has told less, and where the embeddings are others' and so a first pass begins below.
    """
    pair, _ = make_pair("BertForSequenceClassification", planted_seed=None, noise=0.5)
    other, _ = make_pair("BertForSequenceClassification", planted_seed=None, other_seed=5)
    tables = {n: t for n, t in other.b.items() if "embeddings" in n and "LayerNorm" not in n} if anew else {}
    pair = replace(pair, b={**pair.b, **tables}, batches=pair.batches[:6], settings=Settings(basis="orthogonal"))
    found = aligner(by)(pair)(frozenset(pair.kinds()))
    assert found.objective[0] == pytest.approx(nearness_of_weights(pair), abs=1e-6)
    assert all(later >= earlier for earlier, later in pairwise(found.objective))
    moved = replace(pair, b=apply_transform(pair.spec, found.transform, pair.b))
    assert found.objective[-1] == pytest.approx(nearness_of_weights(moved), abs=1e-6)
    assert found.objective[-1] > found.objective[0] + 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["roformer rotary values", "RoFormerForSequenceClassification"])
def test_turned_values_and_turned_queries_are_told_apart_by_activations(name: str) -> None:
    """Both stand in heads and have a fixed order inside: what values say is matched on their axis, not with the queries'."""
    config = CASES[name]
    spec, a, structure = spec_for(config), canonical_tensors(config, 0, torch.float32), structure_of(config)
    shapes = {n: tuple(t.shape) for n, t in a.items()}
    drawn = random_transform(spec, shapes, torch.Generator().manual_seed(1))
    axes = [x for x in {**drawn.maps, **drawn.permutation.indices} if spec.kind(x) in ("heads", "ffn")]
    b = apply_transform(spec, restrict_transform(drawn, axes), a)
    batches = joined([batch for seed in range(6) for batch in random_inputs(config, seed)])
    settings = Settings(basis="orthogonal")
    pair = Pair(spec, a, b, config, lambda n: written_name(structure, n), batches, settings=settings)
    found = aligner("activations")(pair)(frozenset(pair.kinds()))
    back = apply_transform(spec, found.transform, b)
    assert {"turn0", "turn1", "v0", "v1"} <= set(found.maps)
    assert all(torch.allclose(back[n], t, atol=1e-5) for n, t in a.items())
    assert not all(torch.allclose(b[n], t, atol=0.5) for n, t in a.items())


@pytest.mark.slow
def test_restarts_are_heard_with_the_weights_that_are_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matched in canonical form, judged as they are: what no output shows of a and of b is averaged with the rest."""
    pair, _ = make_pair("BertForSequenceClassification", planted_seed=None, other_seed=5)
    pair = replace(pair, batches=pair.batches[:1], settings=Settings(basis="orthogonal", restarts=1))
    heard: list[Pair] = []

    def told(_moves: object, given: Pair, *_: object) -> object:
        heard.append(given)
        return [float(len(heard))], "kl"

    monkeypatch.setattr(rotations, "score", told)
    aligner("weights")(in_canonical_form(pair))(frozenset({"heads"}))
    assert len(heard) == 2
    assert all(given.a is pair.a and given.b is pair.b for given in heard)
    key = "bert.encoder.layer.0.attention.self.key.bias"
    assert not torch.equal(in_canonical_form(pair).a[key], pair.a[key])


@pytest.mark.slow
def test_restarts_are_never_worse_and_come_from_the_seed() -> None:
    """Of unrelated models with a stream that is permuted, sweeps end in one of many places: a shuffle leads to others."""
    config = bert_config(num_hidden_layers=1)
    a, b = (random_tensors(config, seed) for seed in (2, 3))
    pair = Pair(spec_for(config), a, b, config, str)

    def reached(restarts: int, seed: int = 0) -> Alignment:
        settings = Settings(basis="orthogonal", restarts=restarts, seed=seed)
        return aligner("weights")(replace(pair, settings=settings))(frozenset({"residual", "heads", "ffn"}))

    plain, more, again, other = reached(0), reached(4), reached(4), reached(4, seed=1)
    assert more.objective[0] == plain.objective[0]
    assert more.objective[-1] > plain.objective[-1]
    assert more.objective == again.objective != other.objective


@pytest.mark.slow
def test_with_text_the_restart_is_kept_whose_model_half_way_agrees_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the one with the highest J: whichever of three descents is told to agree most is kept."""
    pair = replace(gpt2_pair(1), batches=random_inputs(GPT2)[:1])
    pair = replace(pair, settings=Settings(basis="orthogonal", restarts=2))
    for best in range(3):
        tried: list[Transform] = []

        def told(moves: list[Transform], *_: object, best: int = best, tried: list[Transform] = tried) -> object:
            tried.extend(moves)
            return [0.0 if len(tried) == best + 1 else 1.0], "kl"

        monkeypatch.setattr(rotations, "score", told)
        found = aligner("weights")(pair)(frozenset({"residual", "ffn"}))
        assert len(tried) == 3
        assert all(torch.equal(found.maps[axis], tried[best].maps[axis]) for axis in found.maps)
        others = [t for k, t in enumerate(tried) if k != best]
        assert not any(torch.equal(found.maps["residual"], t.maps["residual"]) for t in others)


@pytest.mark.slow
def test_restarts_by_text_agree_better_and_come_from_the_seed() -> None:
    """On the text itself; J is lower than without restarts here, and above that of models as they are."""
    pair = replace(gpt2_pair(1), batches=random_inputs(GPT2)[:2])

    def reached(restarts: int, seed: int = 0) -> Alignment:
        settings = Settings(basis="orthogonal", restarts=restarts, seed=seed)
        return aligner("weights")(replace(pair, settings=settings))(frozenset({"residual", "ffn"}))

    plain, more, again, other = reached(0), reached(2), reached(2), reached(2, seed=1)
    values, _ = score([found.transform for found in (plain, more, again, other)], pair)
    assert values[1] < values[0]
    assert values[1] == values[2] != values[3]
    assert plain.objective[-1] > more.objective[-1] > more.objective[0] == plain.objective[0]


def test_activations_without_text_are_an_error() -> None:
    with pytest.raises(AlignmentError, match="needs calibration text"):
        aligner("activations+weights")(gpt2_pair())


@pytest.mark.slow
def test_both_ends_are_saved_and_repeated(tmp_path: Path) -> None:
    """What moved the reference lies beside what moved b; without it b alone would meet a reference that stands elsewhere."""
    a, b = (save_checkpoint(tmp_path / name, seed=seed) for seed, name in enumerate("ab"))
    text = str(write_text(tmp_path / "text.txt", 60))
    asked = {"by": "learned", "text": text, "steps": 20, "both": True, "axes": ["heads"]}
    report = run(recipe(a, b, output=tmp_path / "out", **asked))
    moved = report.rebased.aligned[0].reference_transform
    assert moved is not None
    assert moved.maps
    beside = tmp_path / "out" / "reference-transform.safetensors"
    saved = load_transform(spec_for(bert_config()), beside)
    assert all(torch.equal(saved.maps[axis], mapped) for axis, mapped in moved.maps.items())
    said = json.loads((tmp_path / "out" / "merge.json").read_text(encoding="utf-8"))
    assert "reference_maps" in json.dumps(said)
    file = tmp_path / "out" / "transform.safetensors"
    run(recipe(a, b, output=tmp_path / "again", apply=str(file)))
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "again"))
    assert all(torch.equal(first[n], second[n]) for n in first)
    beside.unlink()
    with pytest.raises(SpecError, match="reference-transform.safetensors cannot be read"):
        run(recipe(a, b, output=tmp_path / "third", apply=str(file)))


@pytest.mark.slow
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_head_that_stays_with_its_model_is_rotated_with_the_stream(weight: float, tmp_path: Path) -> None:
    """All of b's body, in a's basis: under b's own head it says what b says. Under all of a's it says something else."""
    config = {**GPT2, "architectures": ["GPT2ForSequenceClassification"]}
    labels = {"a": ("x", "y"), "b": ("u", "v", "w")}
    folders = []
    for seed, (name, words) in enumerate(labels.items()):
        names = {str(i): word for i, word in enumerate(words)}
        own = {**config, "id2label": names, "label2id": {word: int(i) for i, word in names.items()}}
        folders.append(save_checkpoint(tmp_path / name, own, seed=seed))
    models = [{"model": str(folders[0]), "weight": 1 - weight}, {"model": str(folders[1]), "weight": weight}]
    run(make_recipe({"models": models, "output": str(tmp_path / "out"), "heads": "keep-all", "align": ROTATION}))
    batch = random_inputs(config)[0]
    with torch.inference_mode():
        said = [
            transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()(**batch).logits
            for folder in (folders[1], tmp_path / "out" / "b")
        ]
    off = float((said[0] - said[1]).abs().max() / said[0].std())
    assert off < 1e-4 if weight == 1.0 else off > 0.1
