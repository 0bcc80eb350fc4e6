"""Stitches of two models as checkpoints: of a model to itself, of planted copies, of every family and by every map."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from layered import checkpoint_of, difference, outputs
from quick import quick_on
from safetensors.torch import load_file, save_file
from tiny import SPECIAL, WORDS, bert_config, random_tensors, save_checkpoint, save_tokenizer, write_text

import merge
from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.open import open_checkpoint
from merge.errors import MergeError, MismatchError, UsageError
from merge.layers.activations import live_layers, live_model
from merge.layers.stacks import layer_count
from merge.layers.stitching.kinds import MAPS, StitchSettings
from merge.layers.stitching.layout import Layout
from merge.layers.stitching.live import Halves, stitched
from merge.layers.stitching.reordered import reordered, rotated

ROUNDING = 2e-5  # of float32 through four layers
WIDE = {"distilbert": "hidden_dim", "xlnet": "d_inner", "opt": "ffn_dim", "gpt2": "n_inner"}
# Families that differ in kind -> the largest family of maps that their layers can hold.
FITTED = dict.fromkeys(
    ("roberta", "distilbert", "electra", "albert", "xlnet", "roformer", "mpnet", "deberta", "gpt2", "gpt_neox", "opt"),
    "affine",
) | {"llama": "orthogonal", "modernbert": "permutation"}
BERT = bert_config("BertModel", intermediate_size=48, num_hidden_layers=3)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stitches")
    write_text(folder / "text.txt", 60)
    for seed, name in enumerate("ab"):
        save_checkpoint(folder / name, BERT, seed)
    return folder


def family_model(place: Path, family: str, seed: int = 0) -> Path:
    """Return the folder of a model with a tokenizer, whose feed-forward parts are wide enough for a map."""
    folder = place / f"{family}-{seed}"
    if not folder.exists():
        shutil.copytree(checkpoint_of(family, seed, **{WIDE.get(family, "intermediate_size"): 48}).folder, folder)
        save_tokenizer(folder)
    return folder


def live(model: Any) -> Any:
    return live_model(model if isinstance(model, Checkpoint) else open_checkpoint(str(model)))


def gap(made: Any, folder: Path) -> float:
    """Return the largest difference of any output of a stitched model from that of another, as they load."""
    return difference(live(made.folder), live(folder))


@pytest.mark.parametrize("kind", quick_on(("identity", "affine+norm"), [kind for kind in MAPS if kind != "low-rank"]))
def test_a_stitch_of_a_model_to_itself_is_that_model(store: Path, kind: str) -> None:
    """Bit for bit with the identity, and with a permutation, which moves nothing; else to rounding."""
    text = None if kind == "identity" else store / "text.txt"
    made = merge.stitch(store / "a", store / "a", at=(2, 2), map=kind, text=text)
    assert gap(made, store / "a") <= (0.0 if kind in ("identity", "permutation") else ROUNDING)
    if kind == "identity":
        left, right = (load_file(folder / "model.safetensors") for folder in (made.folder, store / "a"))
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.slow
def test_a_low_rank_map_of_all_directions_but_that_of_the_mean_is_the_model_too(store: Path) -> None:
    """A normed state has mean zero before its gain, so one direction carries nothing; with fewer something is lost."""
    full, less = (
        merge.stitch(store / "a", store / "a", at=(2, 2), map="low-rank", rank=rank, text=store / "text.txt")
        for rank in (23, 8)
    )
    assert gap(full, store / "a") < 1e-3
    assert gap(less, store / "a") > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("family", FITTED)
def test_every_family_answers(family: str, store: Path) -> None:
    """The identity is exact; where the family has no place for an affine map, the reason is one line, and another map is."""
    folder = family_model(store, family)
    assert gap(merge.stitch(folder, folder, at=(2, 2), map="identity"), folder) == 0.0
    if FITTED[family] != "affine":
        with pytest.raises(UsageError, match=r"^--map affine cannot be written: norms of .* come first.*gated"):
            merge.stitch(folder, folder, at=(2, 2), text=store / "text.txt")
    made = merge.stitch(folder, folder, at=(2, 2), map=FITTED[family], text=store / "text.txt")
    assert gap(made, folder) <= ROUNDING


def pooled_gap(a: Path, b: Path) -> float:
    left, right = (outputs(live(folder))["pooler_output"] for folder in (a, b))
    return float((left - right).abs().max())


def planted_permutation(store: Path) -> Path:
    """Return a copy of model a whose units are in another order."""
    folder = store / "permuted"
    if not folder.exists():
        model = open_checkpoint(str(store / "a"))
        order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
        shutil.copytree(store / "a", folder)
        tensors = {model.written_name(n): t.contiguous() for n, t in reordered(model, order).items()}
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("kind", quick_on(("permutation",), ("permutation", "orthogonal", "affine")))
def test_a_planted_permuted_copy_is_stitched_exactly(store: Path, kind: str) -> None:
    copy = planted_permutation(store)
    assert pooled_gap(copy, store / "a") < ROUNDING  # it is the same function, its states are in another order
    made = merge.stitch(store / "a", copy, at=(2, 2), map=kind, text=store / "text.txt")
    assert gap(made, copy) < ROUNDING
    assert len(made.report.plan.layers) == (3 if kind == "permutation" else 4)
    if kind == "permutation":
        assert gap(merge.stitch(store / "a", copy, at=(2, 2), map="identity"), copy) > 0.1


def turned_bert(folder: Path, turn: torch.Tensor | None) -> Path:
    """Write a BERT whose norms have gain 1 and bias 0, with its stream turned by a rotation that fixes the ones."""
    tensors = random_tensors(BERT, 2, torch.float64)
    for name in tensors:
        if "LayerNorm" in name:
            tensors[name] = torch.full_like(tensors[name], float(name.endswith("weight")))
        elif turn is not None and ("embeddings" in name or name.endswith(("output.dense.bias",))):
            tensors[name] = tensors[name] @ turn
        elif turn is not None and name.endswith("output.dense.weight"):
            tensors[name] = turn.T @ tensors[name]
        elif turn is not None and name.endswith(
            "weight"
        ):  # queries, keys, values, feed-forward and pooler read the stream
            tensors[name] = tensors[name] @ turn
    return save_checkpoint(folder, BERT, tensors={name: tensor.float() for name, tensor in tensors.items()})


def fixing_ones(seed: int) -> torch.Tensor:
    """Return a rotation that maps the vector of ones to itself, by its action on the complement."""
    drawn = torch.randn(24, 24, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    drawn[:, 0] = 1.0
    basis = torch.linalg.qr(drawn).Q
    inner = torch.linalg.qr(torch.randn(23, 23, generator=torch.Generator().manual_seed(9), dtype=torch.float64)).Q
    return basis[:, 1:] @ inner @ basis[:, 1:].T + 1 / 24


@pytest.mark.slow
def test_a_planted_rotated_copy_is_stitched_exactly(store: Path) -> None:
    plain, copy = turned_bert(store / "plain", None), turned_bert(store / "turned", fixing_ones(4))
    assert pooled_gap(copy, plain) < ROUNDING
    for kind in ("orthogonal", "affine"):
        made = merge.stitch(plain, copy, at=(1, 1), map=kind, text=store / "text.txt")
        assert gap(made, copy) < ROUNDING
    assert gap(merge.stitch(plain, copy, at=(1, 1), map="permutation", text=store / "text.txt"), copy) > 0.1


@pytest.mark.slow
def test_a_rotated_copy_is_stitched_without_a_layer_where_norms_come_first(store: Path) -> None:
    plain = family_model(store, "llama")
    model = open_checkpoint(str(plain))
    turn = torch.linalg.qr(torch.randn(24, 24, generator=torch.Generator().manual_seed(3)).double()).Q
    copy = store / "llama-turned"
    shutil.copytree(plain, copy)
    tensors = {model.written_name(n): t.contiguous() for n, t in rotated(model, turn).items()}
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    assert difference(live(copy), live(plain)) < ROUNDING
    made = merge.stitch(plain, copy, at=(2, 2), map="orthogonal", text=store / "text.txt")
    assert gap(made, plain) < ROUNDING
    assert len(made.report.plan.layers) == 4
    assert gap(merge.stitch(plain, copy, at=(2, 2), map="identity"), plain) > 0.1


@pytest.mark.parametrize("at", quick_on(((1, 2),), ((1, 2), (0, 1), (2, 0), (1, 3), (0, 3))))
def test_the_written_model_computes_what_the_hooks_do(store: Path, at: tuple[int, int]) -> None:
    """The map, applied to the states of a live A inside a live B, is the layer that is written: at every kind of cut."""
    from dataclasses import replace

    from merge.layers.repair.ridge import NormalEquations
    from merge.layers.stitching.maps import fit_map
    from merge.layers.stitching.norms import norm_of_state
    from merge.layers.stitching.pairs import read_text, same_tokens
    from merge.text.source import TextSource

    text = TextSource(str(store / "text.txt"), None, 60, 0)
    made = merge.stitch(store / "a", store / "b", at=at, map="affine", ridge=0.1, text=store / "text.txt", samples=60)
    a, b = (open_checkpoint(str(store / name)) for name in "ab")
    halves = Halves(live_layers(live_model(a)), live_layers(live_model(b)), at)
    sums, none = NormalEquations(24, 24), NormalEquations(24, 24)
    for x, y, _ in same_tokens((halves.bottom, halves.top), at, read_text(a, text).batches):
        sums.add(x.double(), y.double())
    fitted = fit_map("affine", sums, none, (0.1,))
    norm = norm_of_state(b, at[1], halves.top)
    assert norm is not None
    batch = {"input_ids": torch.tensor([[2, 5, 7, 9, 3]]), "attention_mask": torch.ones(1, 5, dtype=torch.long)}

    def mapping(x: torch.Tensor) -> torch.Tensor:
        return norm((fitted(x) - norm.bias) / norm.gain)

    with torch.inference_mode(), stitched(halves, mapping):
        due = halves.top.model(**batch).last_hidden_state
    with torch.inference_mode():
        given = live(made.folder)(**batch).last_hidden_state
        plain = halves.top.model(**batch).last_hidden_state
    assert (given - due).abs().max() < ROUNDING
    assert (plain - due).abs().max() > 0.01
    assert replace(fitted, norm=norm).norm is norm


def test_what_the_output_has_of_which_model(store: Path, tmp_path: Path) -> None:
    """Embeddings of A, class, labels and head of B, which is untied where it shared the embeddings; card and merge.json."""
    save_checkpoint(tmp_path / "a", bert_config("BertForMaskedLM", intermediate_size=48), 0)
    save_checkpoint(tmp_path / "b", bert_config("BertForMaskedLM", intermediate_size=48), 1)
    save_checkpoint(tmp_path / "c", bert_config(labels=("no", "yes"), intermediate_size=48), 2)
    made = merge.stitch(tmp_path / "a", tmp_path / "b", at=(1, 1), map="identity")
    tensors = load_file(made.folder / "model.safetensors")
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    words = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(tensors[words], a[words])
    assert torch.equal(tensors["cls.predictions.decoder.weight"], b[words])
    assert json.loads((made.folder / "config.json").read_text())["tie_word_embeddings"] is False
    assert any("was tied to its embeddings" in note for note in made.notes)
    stated = json.loads((made.folder / "merge.json").read_text())
    assert stated["stitch"] == {"at": [1, 1], "map": "identity", "tokens": "same"}
    assert "Made with `stitch-models`" in (made.folder / "README.md").read_text()
    other = merge.stitch(tmp_path / "b", tmp_path / "c", at=(1, 1), map="identity")
    assert type(other.model).__name__ == "BertForSequenceClassification"
    assert other.model.config.id2label == {0: "no", 1: "yes"}


@pytest.mark.slow
def test_a_base_model_and_one_with_a_head_are_stitched_either_way(store: Path) -> None:
    save_checkpoint(store / "head", bert_config(intermediate_size=48, num_hidden_layers=3), 3)
    for a, b in (("a", "head"), ("head", "a")):
        made = merge.stitch(store / a, store / b, at=(1, 1), map="permutation", text=store / "text.txt")
        assert type(made.model).__name__ == type(live(store / b)).__name__


@pytest.mark.parametrize(
    ("kind", "by"),
    [
        ("orthogonal", "feature"),
        pytest.param("affine+norm", "kl", marks=pytest.mark.slow),
        pytest.param("scale", "kl", marks=pytest.mark.slow),
        pytest.param("low-rank", "feature", marks=pytest.mark.slow),
    ],
)
def test_a_refinement_lowers_its_loss_and_stays_in_its_family(store: Path, kind: str, by: str) -> None:
    made = merge.stitch(
        store / "a", store / "b", at=(1, 1), map=kind, text=store / "text.txt", refine=by, steps=6, rate=3e-3
    )
    done = made.to_json()["stitch"]["refined"]
    assert done["last"] < done["first"]
    assert type(made.model).__name__ == "BertModel"


@pytest.mark.slow
def test_labels_refine_a_map(store: Path, tmp_path: Path) -> None:
    config = bert_config(intermediate_size=48, labels=("no", "yes"))
    for seed, name in enumerate("ab"):
        save_checkpoint(tmp_path / name, config, seed)
    lines = (store / "text.txt").read_text().splitlines()[:40]
    rows = "".join(f"{line}\t{'yes' if 'doctor' in line else 'no'}\n" for line in lines)
    (tmp_path / "rows.tsv").write_text(f"text\tlabel\n{rows}")
    made = merge.stitch(
        tmp_path / "a",
        tmp_path / "b",
        at=(1, 1),
        text=tmp_path / "rows.tsv",
        text_column=["text"],
        refine="task",
        label_column="label",
        steps=4,
        rate=1e-2,
    )
    done = made.to_json()["stitch"]["refined"]
    assert done["loss"] == "cross-entropy"
    assert done["last"] < done["first"]


@pytest.mark.slow
def test_tokens_of_two_tokenizers_are_matched_by_offsets(store: Path, tmp_path: Path) -> None:
    """A copy that reads the same words under other ids, and splits some: the fit sees the same states where both agree."""
    words = [*WORDS[:2], "doc", "##tor", *WORDS[3:]]
    config = bert_config("BertModel", intermediate_size=48, vocab_size=len(SPECIAL) + len(words))
    save_checkpoint(tmp_path / "b", config, 1, tokenizer=False)
    save_tokenizer(tmp_path / "b", words)
    save_checkpoint(tmp_path / "a", bert_config("BertModel", intermediate_size=48), 0)
    with pytest.raises(MismatchError, match="--match-tokens offsets matches the tokens"):
        merge.stitch(tmp_path / "a", tmp_path / "b", at=(1, 1), text=store / "text.txt")
    made = merge.stitch(tmp_path / "a", tmp_path / "b", at=(1, 1), text=store / "text.txt", match_tokens="offsets")
    assert made.model.config.vocab_size == 18
    assert json.loads((made.folder / "tokenizer.json").read_text())["model"]["vocab"]["doctor"] == 7
    assert "pieces of text that tokens of both make up" in (made.folder / "README.md").read_text()


@pytest.mark.slow
def test_the_same_stitch_gives_the_same_bytes(store: Path) -> None:
    made = [merge.stitch(store / "a", store / "b", at=(1, 2), text=store / "text.txt") for _ in range(2)]
    first, second = ((one.folder / "model.safetensors").read_bytes() for one in made)
    assert first == second


@pytest.mark.slow
def test_a_layer_plan_holds_a_fitted_layer_between_two_models(store: Path) -> None:
    """Its text reads back, and the layer does better than none: closer to what B's next layer was trained to read."""
    made = merge.edit([store / "a", store / "b"], "A0, affine(A1->B2), B2", text=store / "text.txt")
    stated = json.loads((made.folder / "edit.json").read_text())
    assert stated["plan"] == "A[0], affine(A1->B2), B[2]"
    assert stated["layers"][1]["reads"] == 0
    assert made.model.config.num_hidden_layers == 3
    again = merge.edit([store / "a", store / "b"], stated["plan"], text=store / "text.txt")
    assert gap(again, made.folder) == 0.0


REFUSED: dict[str, tuple[dict[str, Any], type[MergeError], str]] = {
    "index": ({"at": (9, 1)}, UsageError, "has 3 layers, so it can be cut at 0 to 3, not at 9"),
    "nothing of A": ({"at": (0, 1), "map": "identity"}, UsageError, r"keeps no layer of .*a \(A\)"),
    "nothing of B": ({"at": (1, 3), "map": "identity"}, UsageError, r"keeps no layer of .*b \(B\)"),
    "map": ({"map": "afine"}, UsageError, "unknown map 'afine'. Did you mean 'affine'"),
    "rank": ({"rank": 3}, UsageError, "--rank is the rank of --map low-rank"),
    "refined identity": ({"map": "identity", "refine": "kl"}, UsageError, "has no numbers to refine"),
    "labels": ({"refine": "task"}, UsageError, "--refine task and --label-column belong together"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_written(store: Path, tmp_path: Path, name: str) -> None:
    given, error, says = REFUSED[name]
    with pytest.raises(error, match=says):
        merge.stitch(store / "a", store / "b", **{"at": (1, 1), **given}, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


MIXED: dict[str, tuple[dict[str, Any], str]] = {
    "width": ({"hidden_size": 12, "num_attention_heads": 2}, r"states of 24 units .* and .* of 12.*unwritten"),
    "activation": ({"hidden_act": "relu"}, "hidden_act is 'gelu' in .* 'relu' in"),
    "norm": ({"layer_norm_eps": 1e-3}, "layer_norm_eps is 1e-12"),
    "heads": ({"num_attention_heads": 2}, "num_attention_heads is 4"),
}


@pytest.mark.parametrize("name", MIXED)
def test_models_that_do_not_fit_are_named(store: Path, tmp_path: Path, name: str) -> None:
    changes, says = MIXED[name]
    save_checkpoint(tmp_path / "b", BERT | changes, 1)
    with pytest.raises(MismatchError, match=says):
        merge.stitch(store / "a", tmp_path / "b", at=(1, 1), text=store / "text.txt", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_narrow_feed_forward_part_a_short_text_and_a_shared_table_are_refused(store: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "narrow", bert_config("BertModel"), 0)
    with pytest.raises(UsageError, match="twice the hidden size, 48; this model has 40"):
        merge.stitch(tmp_path / "narrow", tmp_path / "narrow", at=(1, 1), text=store / "text.txt")
    with pytest.raises(MergeError, match="needs text of at least 24 tokens, .* found 7"):
        merge.stitch(store / "a", store / "b", at=(1, 1), text=["the doctor saw a lawyer"])
    with pytest.raises(
        MismatchError, match="read one .*relative_attention_bias.* cannot keep theirs in one checkpoint"
    ):
        merge.stitch(family_model(store, "mpnet"), family_model(store, "mpnet", 1), at=(1, 1), map="identity")
    with pytest.raises(MismatchError, match="layers of one architecture"):
        merge.stitch(store / "a", family_model(store, "mpnet"), at=(1, 1), map="identity")


def test_a_map_below_the_head_takes_the_last_layer_as_its_form(store: Path) -> None:
    """There is no layer of B above: the layer that holds the map has the shapes of the last one."""
    a, b = (open_checkpoint(str(store / name)) for name in "ab")
    total = layer_count(b.config)
    layout = Layout(a, a, b, StitchSettings((1, total), "affine"), True)
    assert layout.plan().layers == (((0, 0),), ((1, total - 1),))
    assert Layout(a, a, b, StitchSettings((1, 0), "affine"), True).plan().layers[1] == ((1, 0),)
