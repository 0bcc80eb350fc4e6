"""Heads and neurons that are gone: the written model computes what the input does with their outputs multiplied by zero."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pruned import QUICK, WHERE, difference, family_checkpoint, inputs, load, multiplied_by_zero, outputs
from quick import quick_on

from merge.errors import OutputError, UsageError
from merge.layers.pruning.prune import Choice, prune_units
from merge.run.verify import verify

Removed = dict[int, tuple[int, ...]]

LISTED: dict[str, Removed] = {"heads": {0: (1, 2), 1: (0, 3)}, "neurons": {0: (0, 7, 39), 1: (5, 6)}}
# What a config can say: whole key/value heads of three queries each, or as many queries of each.
SHRUNK_HEADS: dict[str, Removed] = {
    "nomic_bert": {0: (1, 2), 1: (0, 3)},
    "vit": {0: (0,), 1: (2,)},
    "llama": {0: (3, 4, 5, 9, 10, 11), 1: (0, 1, 2, 3, 4, 5)},
    "mistral": {0: (0, 4, 8, 9), 1: (2, 5, 6, 11)},
    "qwen2": {0: (0, 1, 2, 9, 10, 11), 1: (3, 4, 5, 6, 7, 8)},
    "qwen3": {0: (3, 4, 5), 1: (9, 10, 11)},
}
ROUNDING = 2e-5  # of outputs near one, where a product has fewer columns


@pytest.mark.parametrize("what", ["heads", "neurons"])
@pytest.mark.parametrize("kind", quick_on(QUICK, WHERE))
def test_zeroed_units_are_units_multiplied_by_zero(kind: str, what: str, tmp_path: Path) -> None:
    """Bit for bit, after saving and loading; the controls: as they were, and with other units at zero, outputs differ."""
    checkpoint, removed = family_checkpoint(kind, tmp_path / "m"), LISTED[what]
    report = prune_units(checkpoint, what, Choice(listed=removed), tmp_path / "out")
    batch, model = inputs(kind), load(tmp_path / "m", WHERE[kind].case)
    written = outputs(load(tmp_path / "out", WHERE[kind].case), batch)
    with multiplied_by_zero(model, kind, what, removed):
        expected = outputs(model, batch)
    assert difference(written, expected) == 0.0
    assert report.error == 0.0
    assert difference(written, outputs(model, batch)) > 1e-3
    with multiplied_by_zero(model, kind, what, {0: (2, 3), 1: (1, 2)}):
        assert difference(written, outputs(model, batch)) > 1e-3


@pytest.mark.parametrize("kind", quick_on(("modernbert",), WHERE))
def test_neurons_cut_out_compute_what_zeroed_ones_do(kind: str, tmp_path: Path) -> None:
    """Three neurons of one layer and two of the other: the width is the wider one's, and the other has one at zero."""
    checkpoint, removed = family_checkpoint(kind, tmp_path / "m"), LISTED["neurons"]
    report = prune_units(checkpoint, "neurons", Choice(listed=removed), tmp_path / "out", shrink=True)
    batch, model = inputs(kind), load(tmp_path / "m", WHERE[kind].case)
    small = load(tmp_path / "out", WHERE[kind].case)
    with multiplied_by_zero(model, kind, "neurons", removed):
        expected = outputs(model, batch)
    assert difference(outputs(small, batch), expected) < ROUNDING
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    module = small.get_submodule(WHERE[kind].neurons.format(i=0)).weight
    assert 38 in module.shape
    assert report.pruned.facts["filled_with_zeros"] == {"0": [0]}


@pytest.mark.parametrize("kind", quick_on(("llama",), SHRUNK_HEADS))
def test_heads_cut_out_compute_what_zeroed_ones_do(kind: str, tmp_path: Path) -> None:
    checkpoint, removed = family_checkpoint(kind, tmp_path / "m"), SHRUNK_HEADS[kind]
    prune_units(checkpoint, "heads", Choice(listed=removed), tmp_path / "out", shrink=True)
    batch, model = inputs(kind), load(tmp_path / "m", WHERE[kind].case)
    small = load(tmp_path / "out", WHERE[kind].case)
    with multiplied_by_zero(model, kind, "heads", removed):
        expected = outputs(model, batch)
    assert difference(outputs(small, batch), expected) < ROUNDING
    assert small.config.num_attention_heads == model.config.num_attention_heads - len(removed[0])
    width = small.get_submodule(WHERE[kind].heads.format(i=0)).weight.shape[1]
    assert width == small.config.num_attention_heads * WHERE[kind].size


def test_what_is_written_says_how_it_was_made(tmp_path: Path) -> None:
    """The card for people, edit.json for programs; both name the units and the proof."""
    checkpoint = family_checkpoint("bert", tmp_path / "m")
    prune_units(checkpoint, "heads", Choice(listed={1: (0, 3)}), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "2 of 8 heads removed, their outputs zeroed" in card
    assert "1:0,3" in card
    assert "edit-layers prune-heads" in card
    stored = json.loads((tmp_path / "out" / "edit.json").read_text(encoding="utf-8"))
    assert stored["removed"] == {"1": [0, 3]}
    assert stored["proof"]["error"] == 0.0
    assert stored["files"].keys() == {"config.json", "model.safetensors", "README.md"}
    assert verify(tmp_path / "out").holds


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    checkpoint = family_checkpoint("bert", tmp_path / "m")
    report = prune_units(checkpoint, "heads", Choice(listed={1: (0,)}), tmp_path / "out", dry_run=True)
    assert report.proof is None
    assert not (tmp_path / "out").exists()


FAULTS: dict[str, tuple[str, str, Removed, bool, str]] = {
    "no such head": ("bert", "heads", {0: (4,)}, False, r"layer 0 has no head 4; it has 4, 0 to 3"),
    "no such neuron": ("bert", "neurons", {1: (40,)}, False, r"layer 1 has no neuron 40; it has 40, 0 to 39"),
    "no such layer": ("bert", "heads", {2: (0,)}, False, r"there is no layer 2; the model has 2, 0 to 1"),
    "no head left": ("bert", "heads", {0: (0, 1, 2, 3)}, False, r"layer 0 would have zero heads left"),
    "no neuron left": ("bert", "neurons", {0: tuple(range(40))}, False, r"layer 0 would have zero neurons left"),
    "a family that cannot say it": (
        "bert",
        "heads",
        {0: (0, 1), 1: (0, 1)},
        True,
        r"heads of bert models cannot be cut out",
    ),
    "a number of heads that it refuses": (
        "llama",
        "heads",
        {0: (0, 1, 2), 1: (3, 4, 5)},
        True,
        r"9 left of 12: .*hidden size \(48\) is not a multiple",
    ),
    "unequal layers": ("vit", "heads", {0: (0,)}, True, r"layer 0 would keep 3 and layer 1 4"),
    "unequal groups": ("llama", "heads", {0: (0,), 1: (0,)}, True, r"3 query heads share a key/value head"),
    "a layer as wide": ("bert", "neurons", {0: (0,)}, True, r"layer 1 keeps all its 40 neurons"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_is_one_line_and_nothing_is_written(fault: str, tmp_path: Path) -> None:
    kind, what, removed, shrink, message = FAULTS[fault]
    checkpoint = family_checkpoint(kind, tmp_path / "m")
    with pytest.raises(UsageError, match=message) as raised:
        prune_units(checkpoint, what, Choice(listed=removed), tmp_path / "out", shrink=shrink)
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_an_existing_output_stays_as_it_is(tmp_path: Path) -> None:
    checkpoint = family_checkpoint("bert", tmp_path / "m")
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="out exists"):
        prune_units(checkpoint, "heads", Choice(listed={0: (0,)}), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_result_that_is_not_what_it_should_be_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the proof: a removal that zeroes nothing is caught, and leaves nothing behind."""
    from merge.layers.pruning.units import Place

    checkpoint = family_checkpoint("bert", tmp_path / "m")
    monkeypatch.setattr(Place, "without", lambda _self, tensor, _units: tensor)
    with pytest.raises(OutputError, match="does not compute what it should"):
        prune_units(checkpoint, "heads", Choice(listed={0: (0,)}), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.slow
def test_a_model_with_two_lists_of_layers_needs_to_know_which(tmp_path: Path) -> None:
    from families_more import CASES
    from tiny import save_checkpoint

    from merge.checkpoints.open import open_checkpoint

    folder = save_checkpoint(tmp_path / "m", CASES["CLIPModel"], tokenizer=False)
    checkpoint = open_checkpoint(str(folder))
    with pytest.raises(UsageError, match="--stack text or vision"):
        prune_units(checkpoint, "heads", Choice(listed={0: (0,)}), tmp_path / "out")
    prune_units(checkpoint, "neurons", Choice(listed={0: (0,), 1: (1,)}), tmp_path / "out", shrink=True, stack="vision")
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert (config["text_config"]["intermediate_size"], config["vision_config"]["intermediate_size"]) == (40, 39)


@pytest.mark.slow
def test_a_model_without_attention_has_no_heads_to_cut(tmp_path: Path) -> None:
    from classifier_families import CLASSIFIERS
    from tiny import save_checkpoint

    from merge.checkpoints.open import open_checkpoint

    config = {"model_type": "fnet", "architectures": ["FNetForSequenceClassification"], **CLASSIFIERS["fnet"][1]}
    checkpoint = open_checkpoint(str(save_checkpoint(tmp_path / "m", config, tokenizer=False)))
    with pytest.raises(UsageError, match="the heads of fnet models cannot be cut"):
        prune_units(checkpoint, "heads", Choice(listed={0: (0,)}), tmp_path / "out")
    report = prune_units(checkpoint, "neurons", Choice(listed={0: (0,)}), tmp_path / "out")
    assert any("fnet has no permutation table; one was derived" in note for note in report.notes)


# Families whose tables are derived from a run of the model: their stack, and what a config can say of their heads.
DERIVED = {"t5": ("", True), "bart": ("encoder", False)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", DERIVED)
def test_families_with_a_derived_table_are_pruned_too(kind: str, tmp_path: Path) -> None:
    """The proof of the command itself compares with units multiplied by zero; here, that files say what was proved."""
    from layered import checkpoint_of

    checkpoint, (stack, cuts_heads) = checkpoint_of(kind), DERIVED[kind]
    for what, shrink in (("neurons", True), ("heads", cuts_heads)):
        choice = Choice(listed=dict.fromkeys(range(4), (0, 1)))
        folder = tmp_path / f"{what}{shrink}"
        report = prune_units(checkpoint, what, choice, folder, shrink, stack)
        assert report.error is not None
        assert report.error < 1e-5
        assert json.loads((folder / "edit.json").read_text(encoding="utf-8"))["shrunk"] is shrink


@pytest.mark.slow
def test_files_of_several_dtypes_keep_them(tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from tiny import bert_config, random_tensors, save_checkpoint

    from merge.checkpoints.open import open_checkpoint

    tensors = random_tensors(bert_config(), 0, torch.bfloat16)
    checkpoint = open_checkpoint(str(save_checkpoint(tmp_path / "m", tensors=tensors)))
    prune_units(checkpoint, "heads", Choice(listed={0: (0,)}), tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
