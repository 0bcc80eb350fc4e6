"""Repair: units of the merge get the means and spreads that the models had, and nothing else changes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts.test_aligners import make_pair
from families import CASES, FAMILIES, canonical_tensors, inputs, written_name
from quick import quick_on
from tiny import bert_config, save_checkpoint, write_text
from torch import Tensor

from merge.alignment.pair import Pair, spread
from merge.checkpoints.inputs import attended
from merge.checkpoints.open import open_checkpoint
from merge.checkpoints.structure import structure_of
from merge.checkpoints.transformers_model import build
from merge.errors import AlignmentError, UsageError
from merge.methods import make_method
from merge.recipe.recipe import make_recipe
from merge.run.engine.job import Job
from merge.run.repair.repair import RepairReport, repair
from merge.run.repair.sites import find_sites
from merge.run.repair.step import shares
from merge.run.run import run
from merge.run.verify import verify
from merge.symmetry.architectures import spec_for

Tensors = Mapping[str, Tensor]
FFN, ATTENTION = "bert.encoder.layer.{}.intermediate.dense", "bert.encoder.layer.{}.attention.output.dense"


def two_models() -> Pair:
    """Return two BERTs that never saw each other, and a little text."""
    pair, _ = make_pair("BertForSequenceClassification", planted_seed=None, other_seed=5)
    return replace(pair, batches=pair.batches[:2])


def half_way(a: Tensors, b: Tensors, lam: float = 0.5) -> dict[str, Tensor]:
    return {
        name: torch.lerp(tensor, b[name], lam) if tensor.is_floating_point() else tensor for name, tensor in a.items()
    }


def repaired(
    pair: Pair, merged: Tensors, *ends: Tensors, weights: Any = None
) -> tuple[dict[str, Tensor], RepairReport]:
    found = weights or [1.0] * len(ends)
    return repair(pair.config, merged, ends, lambda _: found, pair.batches, pair.spec, pair.written_name)


def spreads(pair: Pair, tensors: Tensors, module: str) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and deviation of a module's outputs on tokens that are no padding, by numpy on all rows at once."""
    model, kept = pair.model(tensors), []
    handle = model.get_submodule(module).register_forward_hook(lambda _m, _i, output: kept.append(output))
    with torch.inference_mode():
        for batch in pair.batches:
            model(**batch)
    handle.remove()
    rows = np.concatenate([out[attended(b)].double().numpy() for out, b in zip(kept, pair.batches, strict=True)])
    return rows.mean(0), rows.std(0)


@pytest.mark.slow
@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.0, 1.0), (0.0, 2.0)])
def test_every_repaired_unit_has_the_models_mean_and_spread(weights: tuple[float, float]) -> None:
    """Interpolated with the weights of the merge; measured again from outside. The merge itself is far from it."""
    pair = two_models()
    share = weights[1] / sum(weights)
    merged = half_way(pair.a, pair.b, share)
    out, _ = repaired(pair, merged, pair.a, pair.b, weights=weights)
    distances = []
    for module in (name.format(layer) for layer in (0, 1) for name in (ATTENTION, FFN)):
        ends = [spreads(pair, tensors, module) for tensors in (pair.a, pair.b)]
        for k in (0, 1):
            wanted = (1 - share) * ends[0][k] + share * ends[1][k]
            assert np.abs(spreads(pair, out, module)[k] - wanted).max() < 1e-4
            distances.append(np.abs(spreads(pair, merged, module)[k] - wanted).max())
    assert len(distances) == 8
    assert max(distances) > 0.05 or share == 1.0


@pytest.mark.slow
def test_a_merge_of_one_model_with_itself_is_left_as_it_is() -> None:
    """Nothing was lost, so nothing is given back; another model's spreads do change it (the negative control)."""
    pair = two_models()
    same, report = repaired(pair, pair.a, pair.a, pair.a)
    for name, tensor in pair.a.items():
        assert torch.allclose(same[name], tensor, rtol=1e-5, atol=1e-6), name
    assert all(kind.before == pytest.approx(1, abs=1e-6) for kind in report.kinds)
    other, _ = repaired(pair, pair.a, pair.b, pair.b)
    assert not torch.allclose(other[f"{FFN.format(0)}.weight"], pair.a[f"{FFN.format(0)}.weight"], rtol=1e-2)


def test_only_the_layers_named_change_and_arguments_do_not() -> None:
    """Row scales and shifts of attention outputs and feed-forward units: W' = diag(s) W has W's directions."""
    pair = two_models()
    merged = half_way(pair.a, pair.b)
    before = {name: tensor.clone() for name, tensor in merged.items()}
    out, _ = repaired(pair, merged, pair.a, pair.b)
    assert all(torch.equal(merged[name], tensor) for name, tensor in before.items())
    changed = {name for name in merged if not torch.equal(out[name], merged[name])}
    layers = [module.format(layer) for layer in (0, 1) for module in (ATTENTION, FFN)]
    assert changed == {f"{module}.{kind}" for module in layers for kind in ("weight", "bias")}
    for module in layers:
        cosines = torch.cosine_similarity(out[f"{module}.weight"], merged[f"{module}.weight"], dim=1)
        assert torch.allclose(cosines, torch.ones_like(cosines), atol=1e-5)


@pytest.mark.slow
def test_the_report_says_how_much_variance_there_was_and_is() -> None:
    """Before: the median over a kind's units of merge over models, by numpy; after: 1, as every unit was set."""
    pair = two_models()
    merged = half_way(pair.a, pair.b)
    _, report = repaired(pair, merged, pair.a, pair.b)
    assert [kind.kind for kind in report.kinds] == ["heads -> residual", "residual -> ffn"]
    for kind, module in zip(report.kinds, (ATTENTION, FFN), strict=True):
        ratios = []
        for name in (module.format(layer) for layer in (0, 1)):
            due = sum(spreads(pair, end, name)[1] for end in (pair.a, pair.b)) / 2
            ratios.append((spreads(pair, merged, name)[1] / due) ** 2)
        # torch's median is the lower of two middles.
        expected = np.sort(np.concatenate(ratios))[(len(np.concatenate(ratios)) - 1) // 2]
        assert kind.before == pytest.approx(expected, rel=1e-3)
        assert kind.before < 0.8
        assert kind.after == pytest.approx(1, abs=1e-3)
        assert (kind.layers, kind.dead, kind.bias) == (2, 0, True)
    assert report.rows == sum(int(attended(batch).sum()) for batch in pair.batches)
    assert json.loads(json.dumps(report.to_json()))["kinds"][0]["kind"] == "heads -> residual"
    assert "heads -> residual" in report.notes[0]


def test_a_unit_that_never_varies_is_left_as_it_is() -> None:
    """Its deviation is rounding: no factor brings it back, and dividing by it would make infinities."""
    pair = two_models()
    name = f"{FFN.format(0)}.weight"
    a, b = ({**side, name: side[name].clone()} for side in (pair.a, pair.b))
    for side in (a, b):
        side[name][7] = 0
    merged = half_way(a, b)
    out, report = repaired(pair, merged, a, b)
    assert torch.equal(out[name][7], merged[name][7])
    assert torch.equal(out[f"{FFN.format(0)}.bias"][7], merged[f"{FFN.format(0)}.bias"][7])
    assert not torch.equal(out[name][8], merged[name][8])
    assert [kind.dead for kind in report.kinds] == [0, 1]
    assert any("hardly vary" in note for note in report.notes)
    assert all(bool(tensor.isfinite().all()) for tensor in out.values())


@pytest.mark.slow
def test_padding_is_not_measured() -> None:
    """What stands on padded places changes nothing; what stands on real ones does (the negative control)."""
    pair = two_models()
    merged = half_way(pair.a, pair.b)

    def weight(place: slice) -> Tensor:
        batches = []
        for batch in pair.batches:
            ids = batch["input_ids"].clone()
            ids[::2, place] = (ids[::2, place] + 1) % 18
            batches.append({**batch, "input_ids": ids})
        out, _ = repaired(replace(pair, batches=tuple(batches)), merged, pair.a, pair.b)
        return out[f"{FFN.format(1)}.weight"]

    plain = repaired(pair, merged, pair.a, pair.b)[0][f"{FFN.format(1)}.weight"]
    assert torch.allclose(weight(slice(-6, None)), plain, rtol=1e-4)
    assert not torch.allclose(weight(slice(0, 6)), plain, rtol=1e-2)


# XLNet's attention output is no linear layer; layers that share their weights cannot all have their own spread.
WITHOUT_HEADS, SHARED = {"xlnet"}, {"albert"}


@pytest.mark.parametrize("model_type", quick_on(("bert", "albert", "xlnet", "roberta-prelayernorm"), FAMILIES))
def test_every_family_is_repaired(model_type: str) -> None:
    """Whatever its linear layers are called and however they are stored, their units' variance becomes the models'."""
    config = next(config for config in CASES.values() if config["model_type"] == model_type)
    structure, spec = structure_of(config), spec_for(config)
    a, b = (canonical_tensors(config, seed, torch.float32) for seed in (0, 1))
    merged, batches = half_way(a, b), inputs(config, 0)
    _, report = repair(config, merged, (a, b), lambda _: (1, 1), batches, spec, lambda n: written_name(structure, n))
    written = [kind.kind.split(" -> ")[1] for kind in report.kinds]
    assert any(word.endswith("ffn") for word in written)
    assert any(kind.kind.startswith("heads") for kind in report.kinds) or model_type in WITHOUT_HEADS
    assert max(abs(kind.before - 1) for kind in report.kinds if kind.before is not None) > 0.05
    for kind in report.kinds:
        assert kind.after is not None
        assert kind.after == pytest.approx(1, abs=1e-3) or model_type in SHARED


def test_an_embedding_table_that_is_an_output_layer_too_is_no_site() -> None:
    """Scaling its rows would change the embeddings; heads of labels and poolers are not repaired either."""
    config = bert_config("BertForMaskedLM")
    pair, _ = make_pair("BertForMaskedLM", planted_seed=None)
    sites = find_sites(pair.model(pair.a), spec_for(config), pair.a, pair.written_name)
    assert sorted(site.module.rsplit(".", 2)[-2] for site in sites) == ["intermediate"] * 2 + ["output"] * 2


def test_weights_keep_their_dtype() -> None:
    """A bfloat16 merge stays bfloat16, and is measured as it will be read: rounded."""
    pair = two_models()
    merged = {name: tensor.bfloat16() for name, tensor in half_way(pair.a, pair.b).items()}
    out, report = repaired(pair, merged, pair.a, pair.b)
    assert {tensor.dtype for tensor in out.values()} == {torch.bfloat16}
    assert all(kind.after == pytest.approx(1, abs=0.02) for kind in report.kinds)


@pytest.mark.slow
def test_what_cannot_be_interpolated_is_refused() -> None:
    """Negative weights would ask for negative spreads; no text measures nothing."""
    pair = two_models()
    for weights in ((1.0, -0.5), (0.0, 0.0), (1.0,)):
        with pytest.raises(AlignmentError, match="spreads are interpolated"):
            repaired(pair, pair.a, pair.a, pair.b, weights=weights)
    with pytest.raises(AlignmentError, match="needs calibration text"):
        repaired(replace(pair, batches=()), pair.a, pair.a, pair.b)


def test_each_method_says_what_its_models_count() -> None:
    """Weights and slerp's lam are read off the method of the tensor; a method with neither counts models alike."""

    def job(name: str, **settings: Any) -> Job:
        return Job("x", make_method(name, settings, [None, None]), ((0, "x"), (1, "x")))

    assert shares(job("linear", weights=(3.0, 1.0)), 2) == (3.0, 1.0)
    assert shares(job("slerp", lam=0.2), 2) == (0.8, 0.2)
    assert shares(job("linear"), 2) == (1.0, 1.0)
    assert shares(job("model_stock"), 2) == (1.0, 1.0)


def test_text_is_thinned_evenly() -> None:
    """From the shortest batch to the longest; all of it where it is little."""
    batches = tuple({"input_ids": torch.zeros(10, width)} for width in range(1, 41))
    few = spread(batches, tokens=2050)
    widths = [batch["input_ids"].shape[1] for batch in few]
    assert len(widths) == 10
    assert widths == sorted(set(widths))
    assert {later - earlier for earlier, later in pairwise(widths)} == {4}
    assert spread(batches, tokens=10**6) == batches


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two models and a text."""
    folder = tmp_path_factory.mktemp("repair")
    for seed, name in enumerate("ab"):
        save_checkpoint(folder / name, seed=seed)
    save_checkpoint(folder / "mute", seed=2, tokenizer=False)
    write_text(folder / "text.txt", 60)
    return folder


def merged_by_run(folders: Path, out: Path, **changes: Any) -> Any:
    align = {"by": "activations", "axes": ["ffn"], "text": str(folders / "text.txt"), **changes.pop("align", {})}
    models = [str(folders / name) for name in changes.pop("models", "ab")]
    return run(make_recipe({"models": models, "align": align, "output": str(out), **changes}))


@pytest.mark.slow
def test_a_run_repairs_what_it_writes(folders: Path, tmp_path: Path) -> None:
    """The folder holds the repaired weights, its manifest their hashes and the figures; without the flag neither."""
    plain = merged_by_run(folders, tmp_path / "plain")
    report = merged_by_run(folders, tmp_path / "repaired", align={"repair": True})
    manifest = json.loads((tmp_path / "repaired" / "merge.json").read_text(encoding="utf-8"))
    assert manifest["repair"] == report.repair
    assert [kind["kind"] for kind in manifest["repair"]["kinds"]] == ["heads -> residual", "residual -> ffn"]
    assert all(abs(kind["after"] - 1) < 1e-3 < abs(kind["before"] - 1) for kind in manifest["repair"]["kinds"])
    assert any(note.startswith("repair:") for note in report.notes)
    assert verify(tmp_path / "repaired").holds
    assert "repair" not in json.loads((tmp_path / "plain" / "merge.json").read_text(encoding="utf-8"))
    assert plain.repair is None
    one, other = (open_checkpoint(str(tmp_path / name)) for name in ("plain", "repaired"))
    changed = {name for name in one.tensors if not torch.equal(one.tensor(name), other.tensor(name))}
    assert changed == {f"{m.format(i)}.{k}" for m in (FFN, ATTENTION) for i in (0, 1) for k in ("weight", "bias")}
    assert sorted(p.name for p in (tmp_path / "repaired").iterdir() if p.name.startswith(".")) == []
    build(other.config, {other.written_name(name): other.tensor(name) for name in other.tensors})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"slices": [{"layers": "0-0"}]}, "slices"),
        ({"tokenizer": "reference"}, "tokenizer rule"),
        ({"models": ["mute", "a"]}, "has no tokenizer"),
    ],
)
def test_a_repair_that_cannot_be_done_is_refused_before_any_work(
    folders: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    """Nothing is written; the same run without --repair goes through."""
    align = {"by": "weights", "text": None, "repair": True}
    with pytest.raises(UsageError, match=said):
        merged_by_run(folders, tmp_path / "out", align=align, **changes)
    assert not (tmp_path / "out").exists()
    merged_by_run(folders, tmp_path / "out", align={**align, "repair": False}, **changes)
    assert (tmp_path / "out" / "model.safetensors").is_file()
