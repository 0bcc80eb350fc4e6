"""Outputs of dense layers in another order, and with other signs, are brought back where nothing that follows can tell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence import OUT, SIZE, dense_of, needs_library, save_sentence, write_json
from torch import Tensor

from merge.alignment.dense import dense_notes, dense_outputs, match_dense
from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.open import open_checkpoint, open_encoder
from merge.checkpoints.sentence_transformers import module_lines
from merge.recipe.recipe import make_recipe
from merge.run.report import Report
from merge.run.run import run
from merge.symmetry.architectures import spec_for
from merge.symmetry.permutation import apply, random
from merge.symmetry.spec import PermutationSpec
from merge.symmetry.transform import apply_transform

Layer = tuple[str, dict[str, Any], dict[str, Tensor]]
TORCH = "torch.nn.modules.activation."


def drawn(*shape: int, seed: int) -> Tensor:
    return 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def dense(n_in: int, n_out: int, activation: str = "Tanh", seed: int = 1, bias: bool = True, **more: Any) -> Layer:
    tensors = {"linear.weight": drawn(n_out, n_in, seed=seed)} | (
        {"linear.bias": drawn(n_out, seed=seed + 50)} if bias else {}
    )
    if more.get("use_residual") and n_in != n_out:
        tensors["residual.weight"] = drawn(n_out, n_in, seed=seed + 70)
    name = f"torch.nn.modules.linear.{activation}" if activation == "Identity" else activation
    named = name if "." in name else TORCH + name
    return (
        "Dense",
        {"in_features": n_in, "out_features": n_out, "bias": bias, "activation_function": named, **more},
        tensors,
    )


NORM: Layer = (
    "LayerNorm",
    {"dimension": OUT},
    {"norm.weight": drawn(OUT, seed=8) + 1, "norm.bias": drawn(OUT, seed=9)},
)
UNIT: Layer = ("Normalize", {}, {})


def pipeline(folder: Path, *layers: Layer, **general: Any) -> Path:
    """Write an encoder with mean pooling and these modules."""
    save_sentence(folder, dense=False, **general)
    all_ = [("Transformer", {}, {}), ("Pooling", {}, {}), *layers]
    paths = [f"{k}_{kind}" if k else "" for k, (kind, _, _) in enumerate(all_)]
    listed = [
        {"idx": k, "name": str(k), "path": p, "type": f"sentence_transformers.models.{all_[k][0]}"}
        for k, p in enumerate(paths)
    ]
    write_json(folder / "modules.json", listed)
    for path, (_, settings, tensors) in list(zip(paths, all_, strict=True))[2:]:
        write_json(folder / path / "config.json", settings)
        if tensors:
            save_file(tensors, folder / path / "model.safetensors", metadata={"format": "pt"})
    return folder


def turned(layers: list[Layer], at: int, signs: bool) -> list[Layer]:
    """Return the layers with the outputs of one in another order, and other signs, and what reads them changed alike."""
    layers = [(kind, settings, dict(tensors)) for kind, settings, tensors in layers]
    count = layers[at][1]["out_features"]
    generator = torch.Generator().manual_seed(at + 3)
    p = torch.randperm(count, generator=generator)
    s = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0) if signs else torch.ones(count)
    for name, tensor in layers[at][2].items():
        layers[at][2][name] = (tensor[p] * s.reshape(-1, *[1] * (tensor.ndim - 1))).contiguous()
    for kind, _, tensors in layers[at + 1 :]:
        for name, tensor in tensors.items():
            if kind == "LayerNorm":
                tensors[name] = tensor[p].contiguous()
            elif not name.endswith("bias"):
                tensors[name] = (tensor[:, p] * s).contiguous()
        if kind == "Dense":
            break
    return layers


def spec_of(checkpoint: Checkpoint) -> PermutationSpec:
    outputs = {each.path: each.axis for each in dense_outputs(checkpoint) if not each.fixed}
    spec = spec_for(checkpoint.config)
    return replace(spec, lines={**spec.lines, **module_lines(checkpoint, outputs)})


CASES: dict[str, tuple[list[Layer], list[tuple[int, bool]]]] = {
    "tanh": ([dense(SIZE, OUT), UNIT], [(0, True)]),
    "no bias": ([dense(SIZE, OUT, bias=False), UNIT], [(0, True)]),
    "linear": ([dense(SIZE, OUT, "Identity"), UNIT], [(0, True)]),
    "relu": ([dense(SIZE, OUT, "ReLU"), UNIT], [(0, False)]),
    "gelu alone": ([dense(SIZE, OUT, "GELU")], [(0, False)]),
    "sigmoid": ([dense(SIZE, OUT, "Sigmoid")], [(0, False)]),
    "wider": ([dense(SIZE, 2 * SIZE, "Identity")], [(0, True)]),
    "layer norm": ([dense(SIZE, OUT), NORM], [(0, False)]),
    "residual": ([dense(SIZE, OUT, use_residual=True), UNIT], [(0, True)]),
    "two": ([dense(SIZE, OUT), dense(OUT, 6, seed=2), UNIT], [(0, True), (1, True)]),
    "two, relu inside": ([dense(SIZE, OUT, "ReLU"), dense(OUT, 6, "Identity", seed=2)], [(0, False), (1, True)]),
    "norm between": ([dense(SIZE, OUT), NORM, dense(OUT, 6, seed=2)], [(0, False), (2, True)]),
    "tokens": ([dense(SIZE, OUT, "Identity", bias=False, module_input_name="token_embeddings")], [(0, True)]),
}  # fmt: skip


@pytest.mark.parametrize("name", list(CASES))
def test_a_planted_order_is_recovered(name: str, tmp_path: Path) -> None:
    """Order and signs of every layer at once: the modules of the copy become those of the model, exactly."""
    layers, changes = CASES[name]
    copied = layers
    for at, signs in changes:
        copied = turned(copied, at, signs)
    a, b = (open_checkpoint(str(pipeline(tmp_path / k, *own))) for k, own in (("a", layers), ("b", copied)))
    specs = [spec_of(model) for model in (a, b)]
    (kept, transform), notes = match_dense((a, b), specs, (None, None), 0)
    assert kept is None
    assert transform is not None
    moved = apply_transform(specs[1], transform, b.state_dict())
    assert all(torch.allclose(moved[n], a.tensor(n), atol=1e-7) for n in a.tensors)
    assert any(not torch.allclose(b.tensor(n), a.tensor(n), atol=1e-2) for n in a.tensors)
    assert len(notes) == len(changes)
    assert all("similarities of embeddings do not depend on it" in note for note in notes)
    # Merged in place instead, both would be said.
    assert len(dense_notes((a, b))) >= 1


FIXED: dict[str, tuple[list[Layer], dict[str, Any], str]] = {
    "cut": ([dense(SIZE, OUT), UNIT], {"truncate_dim": 6}, "truncate_dim keeps the first of them"),
    "scores": ([dense(SIZE, OUT, module_output_name="scores")], {}, "they are scores"),
    "added": ([dense(SIZE, SIZE, use_residual=True)], {}, "they are added to the inputs"),
    "own activation": ([dense(SIZE, OUT, "own.code.Activation")], {}, "own.code.Activation may treat them differently"),
    "halves": ([dense(SIZE, OUT, "GLU")], {}, "GLU may treat them differently"),
    "other reader": ([dense(SIZE, OUT), ("CNN", {}, {})], {}, "CNN reads them"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(FIXED))
def test_outputs_whose_order_matters_stay_and_that_is_said(name: str, tmp_path: Path) -> None:
    layers, general, reason = FIXED[name]
    a = open_checkpoint(str(pipeline(tmp_path / "a", *layers, **general)))
    b = open_checkpoint(str(pipeline(tmp_path / "b", *turned(layers, 0, signs=True), **general)))
    assert [each.fixed for each in dense_outputs(a)] == [reason]
    notes = dense_notes((a, b))
    assert len(notes) == 1
    assert notes[0].endswith(f"They cannot be moved: {reason}.")
    assert str(b.source) in notes[0]


def test_a_fine_tune_of_the_model_moves_nothing_and_says_nothing(tmp_path: Path) -> None:
    """The negative control: rows near their own places are matched to them."""
    layers = CASES["two"][0]
    near = [
        (kind, s, {n: t + 0.02 * drawn(*t.shape, seed=7) for n, t in tensors.items()}) for kind, s, tensors in layers
    ]
    a, b = (open_checkpoint(str(pipeline(tmp_path / k, *own))) for k, own in (("a", layers), ("b", near)))
    specs = [spec_of(model) for model in (a, b)]
    assert match_dense((a, b), specs, (None, None), 0) == ((None, None), [])
    assert dense_notes((a, b)) == []


def merged(output: Path, *models: Path, **more: Any) -> Report:
    return run(make_recipe({"models": [str(m) for m in models], "output": str(output), **more}))


def test_without_alignment_another_order_is_said(tmp_path: Path) -> None:
    a = pipeline(tmp_path / "a", *CASES["tanh"][0])
    b = pipeline(tmp_path / "b", *turned(CASES["tanh"][0], 0, signs=True))
    report = merged(tmp_path / "out", a, b)
    assert any("in the best order 1.00. --align weights moves them." in note for note in report.notes)


@pytest.mark.slow
def test_a_whole_pipeline_in_another_basis_is_recovered_with_its_base(tmp_path: Path) -> None:
    """The encoder's units and the dense layer's outputs at once, as two trainings would leave them; then the base's too."""
    a = pipeline(tmp_path / "a", *CASES["tanh"][0])
    opened = open_encoder(str(a))
    spec = spec_for(opened.config)
    p = random(spec, opened.shapes, torch.Generator().manual_seed(1))
    kind, settings, tensors = turned(CASES["tanh"][0], 0, signs=True)[0]
    read = {n: t[:, p.indices["residual"]].contiguous() if t.ndim == 2 else t for n, t in tensors.items()}
    b = pipeline(tmp_path / "b", (kind, settings, read), UNIT)
    moved = {opened.written_name(name): t for name, t in apply(spec, p, opened.state_dict()).items()}
    save_file(moved, b / "model.safetensors", metadata={"format": "pt"})
    align = {"by": "weights", "axes": ["residual", "heads", "ffn", "pooler"]}
    report = merged(tmp_path / "out", a, b, align=align)
    assert any("outputs of 2_Dense moved" in note for note in report.notes)
    own = dense_of(a)
    assert all(torch.allclose(t, own[n], atol=1e-6) for n, t in dense_of(tmp_path / "out").items())
    merged(tmp_path / "based", a, a, align=align, method="task_arithmetic", base=str(b))
    assert all(torch.allclose(t, own[n], atol=1e-5) for n, t in dense_of(tmp_path / "based").items())
    one, out = (load_file(f / "model.safetensors") for f in (a, tmp_path / "out"))
    assert all(torch.allclose(out[n], one[n], atol=1e-6) for n in one)


@needs_library
@pytest.mark.slow
def test_the_library_finds_the_same_similarities_after_a_move(tmp_path: Path) -> None:
    """By sentence-transformers itself: the copy in the reference's order has the embeddings of the reference."""
    from sentence_transformers import SentenceTransformer

    layers = [dense(SIZE, OUT), dense(OUT, 6, seed=2), UNIT]
    a = pipeline(tmp_path / "a", *layers)
    b = pipeline(tmp_path / "b", *turned(turned(layers, 0, signs=True), 1, signs=True))
    merged(tmp_path / "out", a, b, align={"by": "weights"})
    texts = ["the doctor saw a lawyer", "who helped the river", "near ."]
    one, two, out = (SentenceTransformer(str(f), device="cpu") for f in (a, b, tmp_path / "out"))
    vectors = [torch.tensor(model.encode(texts)) for model in (one, two, out)]
    assert not torch.allclose(vectors[0], vectors[1], atol=1e-2)
    assert torch.allclose(vectors[0] @ vectors[0].T, vectors[1] @ vectors[1].T, atol=1e-5)
    assert torch.allclose(vectors[0], vectors[2], atol=1e-5)
