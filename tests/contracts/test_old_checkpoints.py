"""Old checkpoints of every family: whatever its file looks like, a model reads and merges as if it were saved today.

Each form is made by hand from a checkpoint that transformers wrote, so that both are the same model. Where a form makes
no sense for a family, EXEMPT says why, and a test that nothing else is left out.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from architecture_case import CASES
from quick import quick_on
from safetensors.torch import load_file, save_file
from tiny import save_checkpoint
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import PrefixChange

from merge.checkpoints.open import open_checkpoint
from merge.checkpoints.structure import structure_of
from merge.checkpoints.transformers_model import loading, loading_faults, meta_model, model_class
from merge.errors import CheckpointError, MismatchError
from merge.recipe.recipe import make_recipe
from merge.run.report import Report
from merge.run.run import run

Config = Mapping[str, Any]
Tensors = dict[str, Tensor]
# All of transformers' own: of the multi-layer perceptron there are no older versions.
FAMILIES = tuple(dict.fromkeys(c["model_type"] for c, _ in CASES.values() if c["model_type"] != "mlp"))
LENGTH = 32  # positions of every tiny model of texts


@cache
def of_family(family: str, kind: str) -> str | None:
    """Return the name of the case that stands for a family: one tied to its embeddings, else one with a head.

    For BEiT the one with relative positions. `base` asks for the base model alone.
    """
    mine = {
        name: str(config["architectures"][0]) for name, (config, _) in CASES.items() if config["model_type"] == family
    }
    bases = [name for name, made in mine.items() if made.endswith("Model") and not made.endswith("LMHeadModel")]
    if kind == "base":
        return next(iter(bases), None)
    writers = [name for name, made in mine.items() if re.search("MaskedLM|CausalLM|LMHead", made)]
    tied = ["beit relative"] if family == "beit" else (n for n in writers if structure_of(CASES[n][0]).ties)
    return next(iter([*tied, *(name for name in mine if name not in bases), *bases]))


GROUPS = [
    (f, kind) for kind in ("head", "base") for f in FAMILIES if not (kind == "base" and of_family(f, kind) is None)
]

# The forms: what an old file calls and holds of a model; None where the family never had it.


def gamma_and_beta(config: Config, tensors: Tensors) -> Tensors | None:
    old = {
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
        for n, t in tensors.items()
    }
    return None if old.keys() == tensors.keys() else old


POSITIONS = [
    "bert", "ernie", "layoutlm", "roberta", "xlm-roberta", "camembert", "data2vec-text", "electra", "mpnet",
    "distilbert", "albert", "megatron-bert", "roberta-prelayernorm", "xlm-roberta-xl", "deberta",
    "deberta-v2",
]  # fmt: skip
SEGMENTS = [
    "bert", "ernie", "roberta", "xlm-roberta", "camembert", "electra", "albert", "roberta-prelayernorm",
    "xlm-roberta-xl",
]  # fmt: skip


def buffers(config: Config, tensors: Tensors) -> Tensors | None:
    """Add what was registered as a buffer when the file was written."""
    family, found = config["model_type"], Tensors()
    if family in POSITIONS:
        (at,) = {n.partition("embeddings.")[0] for n in tensors if ".word_embeddings.weight" in n}
        found[f"{at}embeddings.position_ids"] = torch.arange(LENGTH)[None]
        if family in SEGMENTS:
            found[f"{at}embeddings.token_type_ids"] = torch.zeros(1, LENGTH, dtype=torch.long)
    for name in [n for n in tensors if family.startswith("clip") and "embeddings.position_embedding.weight" in n]:
        found[name.replace("position_embedding.weight", "position_ids")] = torch.arange(len(tensors[name]))[None]
    for i in range(2):
        if family == "gpt2":
            mask = torch.ones(LENGTH, LENGTH, dtype=torch.uint8).tril()
            found[f"transformer.h.{i}.attn.bias"] = mask[None, None]
            found[f"transformer.h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
        if family in ("llama", "mistral", "qwen2"):
            found[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = 10000.0 ** (-torch.arange(0, 4, 2) / 4)
        if family == "beit":
            name = f"beit.encoder.layer.{i}.attention.attention.relative_position_bias.relative_position_index"
            found[name] = torch.tensor(  # of 2 x 2 patches: 9 distances, then from, to and of the class token
                [[11, 9, 9, 9, 9], [10, 4, 3, 1, 0], [10, 5, 4, 2, 1], [10, 7, 6, 4, 3], [10, 8, 7, 5, 4]]
            )
    return {**tensors, **found} if found else None


def twins(config: Config, tensors: Tensors) -> Tensors | None:
    """Store every tied tensor under each of its names."""
    ties = structure_of(config).ties
    return {**tensors, **{copy: tensors[source].clone() for copy, source in ties.items()}} if ties else None


def twins_alone(config: Config, tensors: Tensors) -> Tensors | None:
    """Store every tied tensor under the copy's name alone."""
    ties = {source: copy for copy, source in structure_of(config).ties.items()}
    return {ties.get(name, name): tensor for name, tensor in tensors.items()} if ties else None


def without_prefix(config: Config, tensors: Tensors) -> Tensors | None:
    prefix, bare = structure_of(config).prefix, Tensors()
    for name, tensor in tensors.items():
        bare[name.removeprefix(f"{prefix}.")] = tensor
    return None if bare.keys() == tensors.keys() else bare


def with_prefix(config: Config, tensors: Tensors) -> Tensors | None:
    prefix = structure_of(config).prefix
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


VIT = {
    r"\blayers\.(\d)": r"encoder.layer.\1",
    r"attention\.q_proj": "attention.attention.query",
    r"attention\.k_proj": "attention.attention.key",
    r"attention\.v_proj": "attention.attention.value",
    r"attention\.o_proj": "attention.output.dense",
    r"mlp\.fc1": "intermediate.dense",
    r"mlp\.fc2": "output.dense",
}
BEIT = VIT | {
    r"(\d)\.relative_position_bias\.": r"\1.attention.attention.relative_position_bias.",
    r"shared_position_bias\.": "encoder.relative_position_bias.",
}
NOMIC = {
    r"embeddings\.LayerNorm": "emb_ln",
    r"\blayers\.(\d)": r"encoder.layers.\1",
    r"self_attn\.o_proj": "attn.out_proj",
    r"post_attention_layernorm": "norm1",
    r"post_mlp_layernorm": "norm2",
    r"mlp\.up_proj": "mlp.fc11",
    r"mlp\.gate_proj": "mlp.fc12",
    r"mlp\.down_proj": "mlp.fc2",
}
# Family -> patterns of today's names -> the names of before transformers 5.
RENAMED: dict[str, dict[str, str]] = {
    **dict.fromkeys(("vit", "deit"), VIT),
    "beit": BEIT,
    "nomic_bert": NOMIC,
    "clip_text_model": {"^": "text_model."},
    "clip_vision_model": {"^": "vision_model."},
}


def older_names(config: Config, tensors: Tensors) -> Tensors | None:
    if config["model_type"] not in RENAMED:
        return None
    old = Tensors()
    for name, tensor in tensors.items():
        if config["model_type"] == "nomic_bert" and re.search("self_attn.[qkv]_proj", name):
            fused = [tensors[re.sub("[qkv]_proj", f"{part}_proj", name)] for part in "qkv"]
            name, tensor = re.sub(r"self_attn\.[qkv]_proj", "attn.Wqkv", name), torch.cat(fused)
        for today, before in RENAMED[config["model_type"]].items():
            name = re.sub(today, before, name)
        old[name] = tensor
    return old


def everything(config: Config, tensors: Tensors) -> Tensors | None:
    """Put all forms on top of one another that do not exclude each other."""
    for form in (twins, gamma_and_beta, older_names, buffers):
        tensors = form(config, tensors) or tensors
    return tensors


def as_it_is(config: Config, tensors: Tensors) -> Tensors | None:
    return tensors


# How a file holds them.


def whole(folder: Path, tensors: Tensors) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")


def pickled(folder: Path, tensors: Tensors) -> None:
    torch.save(tensors, folder / "pytorch_model.bin")


def _in_shards(folder: Path, stem: str, ending: str, save: Callable[[Any, Path], Any], tensors: Tensors) -> None:
    placed = {name: f"{stem}-{k % 2 + 1:05}-of-00002.{ending}" for k, name in enumerate(tensors)}
    for shard in set(placed.values()):
        save({n: t.contiguous() for n, t in tensors.items() if placed[n] == shard}, folder / shard)
    index = json.dumps({"metadata": {}, "weight_map": placed})
    (folder / f"{stem}.{ending}.index.json").write_text(index, encoding="utf-8")


def sharded(folder: Path, tensors: Tensors) -> None:
    _in_shards(folder, "model", "safetensors", save_file, tensors)


def pickled_in_shards(folder: Path, tensors: Tensors) -> None:
    _in_shards(folder, "pytorch_model", "bin", torch.save, tensors)


@dataclass(frozen=True)
class Form:
    """An old form.

    Attributes:
        case: which of a family's cases it is a form of; see `of_family`.
        make: the tensors as the old file has them; None where the family never had this form.
        store: how the file holds them.
        note: what the run says of it; None where there is nothing to say.
    """

    case: str
    make: Callable[[Config, Tensors], Tensors | None]
    store: Callable[[Path, Tensors], None] = whole
    note: str | None = None


FORMS = {
    "gamma and beta": Form("head", gamma_and_beta, note="with the old names gamma and beta read as weight and bias"),
    "bin": Form("head", as_it_is, pickled),
    "bin in shards": Form("head", as_it_is, pickled_in_shards),
    "safetensors in shards": Form("head", as_it_is, sharded),
    "buffers": Form("head", buffers, note="is no longer stored by transformers; left out"),
    "twins": Form("head", twins, note="(tied); kept once"),
    "twins alone": Form("head", twins_alone),
    "without prefix": Form("head", without_prefix),
    "with prefix": Form("base", with_prefix),
    "older names": Form("head", older_names, note="tensors with older names are read and written under those"),
    "everything": Form("head", everything, sharded),
}

NO_LAYER_NORM = "none of its norms is called LayerNorm, and no file of it ever said gamma"
NO_BUFFER = "registers none that was ever stored"
IMAGES = "reads images: no head of it writes tokens"
NO_TIE = "no head of its cases is tied to the embeddings by its config"
NO_HEAD = "no case of it has a head whose file tells it from the base model by the prefix"
LIKE = "its files have always had today's names"
PLAIN = ("gpt2", "llama", "mistral", "qwen2", "qwen3", "modernbert", "xlnet")
VISION = ("vit", "deit", "beit", "clip", "clip_text_model", "clip_vision_model")
# Form -> family -> why the family never had it.
EXEMPT: dict[str, dict[str, str]] = {
    "gamma and beta": dict.fromkeys((*PLAIN, *VISION), NO_LAYER_NORM),
    "buffers": dict.fromkeys(("qwen3", "modernbert", "xlnet", "nomic_bert", "vit", "deit"), NO_BUFFER)
    | {"roformer": "still stores its table of sines"},
    "twins": dict.fromkeys(VISION, IMAGES) | dict.fromkeys(("mistral", "qwen2", "qwen3"), NO_TIE),
    "with prefix": dict.fromkeys(("mistral", "qwen3"), "no case of it is the base model alone"),
    "without prefix": {"clip": NO_HEAD},
    "older names": {family: LIKE for family in FAMILIES if family not in RENAMED},
}
EXEMPT |= dict.fromkeys(("twins alone", "everything of a tied model"), EXEMPT["twins"])


def made(form: Form, family: str) -> Tensors | None:
    """Return the old form of a family's model, of tensors that are told apart by their shapes alone."""
    name = of_family(family, form.case)
    if name is None:
        return None
    config, structure = CASES[name][0], structure_of(CASES[name][0])
    return form.make(config, {n: torch.zeros(s) for n, s in structure.shapes.items() if n not in structure.ties})


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_left_out_only_with_a_reason(form: str) -> None:
    """Nothing is skipped in silence, and no reason outlives what it excuses."""
    absent = {family for family in FAMILIES if made(FORMS[form], family) is None}
    assert absent == EXEMPT.get(form, {}).keys()


def test_transformers_renames_what_the_table_says_it_does() -> None:
    """Its own rules: a family that it renames tomorrow is missed here first.

    A rule that only takes a prefix away is counted for the towers of CLIP alone: the others' are not of their own files.
    """
    renamed = set()
    for config in (CASES[str(of_family(family, kind))][0] for family, kind in GROUPS):
        rules = get_model_conversion_mapping(meta_model(config), add_legacy=False)
        own = [rule for rule in rules if not isinstance(rule, PrefixChange) or rule.scope_prefix is None]
        renamed |= {config["model_type"]} if own else set()
    assert renamed == RENAMED.keys()


@dataclass(frozen=True)
class Modern:
    """Two models of one case as transformers saves them: a config and two folders."""

    config: Config
    a: Path
    b: Path


def merge(models: Sequence[Path], output: Path, **more: Any) -> Report:
    return run(make_recipe({"models": [str(model) for model in models], "output": str(output), **more}), force=True)


@pytest.fixture(scope="module")
def modern(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Modern]:
    """Return the modern pair that stands for a family, saved once."""

    @cache
    def pair(family: str, kind: str) -> Modern:
        name = of_family(family, kind)
        assert name is not None
        folder, config = tmp_path_factory.mktemp("modern"), CASES[name][0]
        a, generator = save_checkpoint(folder / "a", config, tokenizer=False), torch.Generator().manual_seed(1)
        floats = {n: t.is_floating_point() for n, t in weights(a).items()}
        b = {n: torch.randn(t.shape, generator=generator) if floats[n] else t for n, t in weights(a).items()}
        return Modern(config, a, old_folder(folder / "b", a, b))

    return pair


def old_folder(folder: Path, like: Path, tensors: Tensors, store: Callable[[Path, Tensors], None] = whole) -> Path:
    folder.mkdir()
    shutil.copyfile(like / "config.json", folder / "config.json")
    store(folder, tensors)
    return folder


def weights(folder: Path) -> Tensors:
    return load_file(folder / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    """Tell whether two folders open to the same tensors, bit for bit, read through torch and through numpy."""
    left, right = open_checkpoint(str(one)), open_checkpoint(str(other))
    return left.tensors.keys() == right.tensors.keys() and all(
        left.tensor(n).dtype == right.tensor(n).dtype
        and torch.equal(left.tensor(n), right.tensor(n))
        and left.array(n).tobytes() == right.array(n).tobytes() == left.tensor(n).numpy().tobytes()
        for n in left.tensors
    )


def identical(one: Path, other: Path) -> bool:
    names = ("model.safetensors", "config.json")
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def loaded(folder: Path, config: Config) -> tuple[Tensors, list[str]]:
    """Return what from_pretrained makes of a folder, and its complaints."""
    with loading():
        model, info = model_class(config).from_pretrained(folder, output_loading_info=True)
    assert type(model).__name__ == config["architectures"][0]
    return model.state_dict(), loading_faults(info)


def by_rota(forms: Sequence[str], rest: bool = True) -> list[Any]:
    """Return every (family, form) that there is as parameters: the quick ones have every form and every family once.

    Each family takes the form that fewest have had; the rest is for `make check`, or left out.
    """
    having = {form: [family for family in FAMILIES if family not in EXEMPT.get(form, {})] for form in forms}
    quick = {form: set[str]() for form in forms}
    for family in FAMILIES:
        mine = [form for form in forms if family in having[form]]
        if mine:
            quick[min(mine, key=lambda form: len(quick[form]))].add(family)
    for form in forms:
        quick[form] |= set() if quick[form] else {having[form][0]}
    return [
        pytest.param(family, form, id=f"{form}-{family}", marks=() if family in quick[form] else pytest.mark.slow)
        for form in forms
        for family in having[form]
        if rest or family in quick[form]
    ]


def quick_groups() -> list[Any]:
    """Return GROUPS as parameters: quick are families each of which has a form that the others have not."""
    quick = {"bert", "nomic_bert", "beit", "gpt2", "llama", "clip", "clip_text_model"}
    return [pytest.param(*group, marks=() if group[0] in quick else pytest.mark.slow) for group in GROUPS]


def test_the_quick_pairs_have_every_form_and_every_family() -> None:
    quick = [pair.values for pair in by_rota(list(FORMS)) if not pair.marks]
    assert {form for _, form in quick} == FORMS.keys()
    assert {family for family, _ in quick} == set(FAMILIES)
    assert len(quick) <= len(FAMILIES) + len(FORMS)


# Every form of every family is opened in the next test, where a merge with it has the bytes of a merge with the modern one.
@pytest.mark.parametrize(("family", "form"), by_rota(list(FORMS), rest=False))
def test_an_old_form_opens_as_the_modern_one(
    family: str, form: str, modern: Callable[[str, str], Modern], tmp_path: Path
) -> None:
    """The same names, the same bytes, and a word about what is not as it is saved today."""
    how = FORMS[form]
    pair = modern(family, how.case)
    tensors = how.make(pair.config, weights(pair.b))
    assert tensors is not None
    old = old_folder(tmp_path / "old", pair.b, tensors, how.store)
    opened, today = open_checkpoint(str(old)), open_checkpoint(str(pair.b))
    assert same(old, pair.b)
    assert list(opened.tensors) == list(today.tensors)
    assert opened.fingerprint == today.fingerprint != open_checkpoint(str(pair.a)).fingerprint
    assert today.notes == ()
    if how.note:
        assert any(how.note in note for note in opened.notes)
    elif how.make is not everything:
        assert opened.notes == ()


@pytest.mark.parametrize(("family", "kind"), quick_groups())
def test_old_forms_merge_as_modern_ones(
    family: str, kind: str, modern: Callable[[str, str], Modern], tmp_path: Path
) -> None:
    """One merge of a model with another in each of its old forms, the first old too: the bytes are the modern merge's.

    The result is of the right class and loads with no key missing or left over.
    """
    pair = modern(family, kind)
    a, b = weights(pair.a), weights(pair.b)
    forms = {name: made for name, form in FORMS.items() if (made := form.make(pair.config, b)) and form.case == kind}
    olds = [old_folder(tmp_path / name, pair.b, tensors, FORMS[name].store) for name, tensors in sorted(forms.items())]
    first = old_folder(tmp_path / "first", pair.a, everything(pair.config, a) or a)
    assert len(olds) == sum(FORMS[form].case == kind and family not in EXEMPT.get(form, {}) for form in FORMS)
    merge([pair.a, *[pair.b] * len(olds)], tmp_path / "modern")
    report = merge([first, *olds], tmp_path / "old")
    assert identical(tmp_path / "old", tmp_path / "modern")
    said = {FORMS[form].note for form in forms} - {None}
    assert all(any(str(words) in note for note in report.notes) for words in said)
    state, faults = loaded(tmp_path / "old", pair.config)
    assert faults == []
    weight = 1 / (1 + len(olds))
    floats = [n for n in a if a[n].is_floating_point() and a[n].numel()]
    assert all((state[n] - (weight * a[n] + (1 - weight) * b[n])).abs().max() < 1e-5 for n in floats)


NAMES = ("gamma and beta", "older names", "twins", "with prefix", "without prefix")


@pytest.mark.parametrize(("family", "form"), by_rota(NAMES))
def test_transformers_too_reads_the_old_form_as_the_same_model(
    family: str, form: str, modern: Callable[[str, str], Modern], tmp_path: Path
) -> None:
    """So the forms are those of real files and no inventions of ours."""
    pair = modern(family, FORMS[form].case)
    today = weights(pair.b)
    tensors = FORMS[form].make(pair.config, today)
    assert tensors is not None
    before, faults = loaded(old_folder(tmp_path / "old", pair.b, tensors), pair.config)
    assert faults == []
    assert all(torch.equal(before[n], today[n]) for n in today)


@pytest.mark.parametrize("family", FAMILIES)
def test_half_the_tensors_in_sixteen_bits(family: str, modern: Callable[[str, str], Modern], tmp_path: Path) -> None:
    """The stored dtypes are kept and said; with a model of one dtype, what to write is asked, and then it is the mean."""
    pair = modern(family, "head")
    a, b = weights(pair.a), weights(pair.b)
    floats = [n for n in b if b[n].is_floating_point()]
    mixed = b | {n: b[n].half() for n in floats[::4]} | {n: b[n].bfloat16() for n in floats[2::4]}
    old = old_folder(tmp_path / "old", pair.b, mixed)
    opened = open_checkpoint(str(old))
    read = {opened.written_name(n): tensor for n, tensor in opened.state_dict().items()}
    assert read.keys() == mixed.keys()
    assert all(read[n].dtype == mixed[n].dtype and torch.equal(read[n], mixed[n]) for n in mixed)
    counts = [len(floats[2::4]), len(floats[::4]), len(floats[1::2])]
    said = f"its tensors are of several dtypes: {counts[0]} BF16, {counts[1]} F16, {counts[2]} F32"
    assert any(said in note for note in opened.notes)
    refused = f"dtypes differ in {counts[0] + counts[1]} tensors: .* Say what to write: --out-dtype float32"
    with pytest.raises(MismatchError, match=refused) as caught:
        merge([pair.a, old], tmp_path / "refused")
    assert "\n" not in str(caught.value)
    report = merge([pair.a, old], tmp_path / "out", out_dtype="float32")
    merged = weights(tmp_path / "out")
    assert all(torch.equal(merged[n], (a[n] + mixed[n].float()) / 2) for n in floats)
    assert any(not torch.equal(merged[n], (a[n] + b[n]) / 2) for n in floats)
    assert any(said in note for note in report.notes)


def test_two_models_of_the_same_mix_keep_it(modern: Callable[[str, str], Modern], tmp_path: Path) -> None:
    """Nothing is cast where nothing has to be: each tensor is written in the dtype that both have it in."""
    pair = modern("bert", "head")
    mixed = [weights(folder) for folder in (pair.a, pair.b)]
    half = list(mixed[0])[::2]
    mixed = [tensors | {n: tensors[n].half() for n in half} for tensors in mixed]
    a, b = (old_folder(tmp_path / f, pair.b, tensors) for f, tensors in zip("ab", mixed, strict=True))
    merge([a, b], tmp_path / "out")
    merged = weights(tmp_path / "out")
    expected = {n: ((mixed[0][n].float() + mixed[1][n].float()) / 2).to(mixed[0][n].dtype) for n in merged}
    assert all(merged[n].dtype == expected[n].dtype and torch.equal(merged[n], expected[n]) for n in merged)
    assert {merged[n].dtype for n in half} == {torch.float16}


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in EXEMPT["twins"]])
def test_twins_that_differ_are_an_error(family: str, modern: Callable[[str, str], Modern], tmp_path: Path) -> None:
    """Which of the two the model was meant to have cannot be known."""
    pair = modern(family, "head")
    tensors = twins(pair.config, weights(pair.b)) or {}
    copies = structure_of(pair.config).ties
    for k, copy in enumerate(copies):
        old = old_folder(tmp_path / str(k), pair.b, tensors | {copy: tensors[copy] + 1e-6})
        with pytest.raises(CheckpointError, match="differ, but config.json ties them") as caught:
            open_checkpoint(str(old))
        assert copy in str(caught.value)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in EXEMPT["buffers"]])
def test_buffers_that_say_something_of_their_own_are_an_error(
    family: str, modern: Callable[[str, str], Modern], tmp_path: Path
) -> None:
    """Left out in silence, they would change what the model computes."""
    pair = modern(family, "head")
    own = weights(pair.b)
    added = [name for name in (buffers(pair.config, own) or {}) if name not in own]
    tensors = buffers(pair.config, own) or {}
    for k, name in enumerate(added):
        changed = tensors[name].flip(-1) + 1 if tensors[name].ndim else torch.tensor(-1.0)
        old = old_folder(tmp_path / str(k), pair.b, tensors | {name: changed})
        with pytest.raises(CheckpointError, match="of its own cannot be kept") as caught:
            open_checkpoint(str(old))
        assert name.rpartition(".")[2] in str(caught.value)


@pytest.mark.parametrize("family", RENAMED)
def test_a_tensor_under_its_old_and_its_new_name_is_an_error(
    family: str, modern: Callable[[str, str], Modern], tmp_path: Path
) -> None:
    pair = modern(family, "head")
    tensors, old = weights(pair.b), older_names(pair.config, weights(pair.b)) or {}
    name = next(n for n in tensors if n not in old and n.endswith("weight"))
    with pytest.raises(CheckpointError, match="are both stored and mean the same tensor"):
        open_checkpoint(str(old_folder(tmp_path / "m", pair.b, old | {name: tensors[name]})))


def test_a_fused_tensor_whose_rows_are_no_three_blocks_is_an_error(
    modern: Callable[[str, str], Modern], tmp_path: Path
) -> None:
    pair = modern("nomic_bert", "head")
    old = older_names(pair.config, weights(pair.b)) or {}
    name = next(n for n in old if "Wqkv" in n)
    with pytest.raises(CheckpointError, match="is not 3 equal blocks of rows"):
        open_checkpoint(str(old_folder(tmp_path / "m", pair.b, old | {name: old[name][:-1]})))
    with pytest.raises(CheckpointError, match=r"q_proj.weight is \(23, 24\), by config.json \(24, 24\)"):
        open_checkpoint(str(old_folder(tmp_path / "n", pair.b, old | {name: old[name][:-3]})))


# Which families' base models have a pooler that may be left out.
POOLERS = [
    "bert", "ernie", "layoutlm", "roberta", "xlm-roberta", "camembert", "data2vec-text", "mpnet", "albert",
    "megatron-bert", "roberta-prelayernorm", "xlm-roberta-xl", "vit", "deit",
]  # fmt: skip


def poolers(tensors: Mapping[str, Any]) -> set[str]:
    return {name for name in tensors if name.startswith("pooler.")}


def test_the_families_with_a_pooler_are_those_listed() -> None:
    """BEiT's norm over the mean of the patches is called a pooler too, but no file leaves it out."""
    bases = {family: of_family(family, "base") for family in FAMILIES}
    found = {f for f, name in bases.items() if name is not None and poolers(structure_of(CASES[name][0]).shapes)}
    assert found - {"beit"} == set(POOLERS)


@pytest.mark.parametrize("family", quick_on(("bert", "albert", "mpnet", "vit"), POOLERS))
def test_a_missing_pooler_is_said_or_refused(family: str, modern: Callable[[str, str], Modern], tmp_path: Path) -> None:
    """Of both models: merged without, and said. Of one: a line that says what to do; done, all else is as before."""
    pair = modern(family, "base")
    bare = []
    for folder in (pair.a, pair.b):
        kept = {n: t for n, t in weights(folder).items() if n not in poolers(weights(folder))}
        bare.append(old_folder(tmp_path / folder.name, folder, kept))
    report = merge(bare, tmp_path / "both")
    a, b, both = weights(pair.a), weights(pair.b), weights(tmp_path / "both")
    lacking = sorted(poolers(a))
    assert f"reloading says, of the reference too: missing {', '.join(lacking)}" in report.notes
    expected = {n: (a[n] + b[n]) / 2 for n in a if n not in lacking}
    assert both.keys() == expected.keys()
    assert all(torch.equal(both[n], expected[n]) for n in both)
    mixed = [pair.a, bare[1]], [bare[0], pair.b]
    for models in mixed:
        with pytest.raises(MismatchError, match="(lacks|has) .*pooler.*(has|lacks).*--heads drop") as caught:
            merge(models, tmp_path / "one")
        assert "\n" not in str(caught.value)
    report = merge(mixed[1], tmp_path / "one", heads="drop")
    one = weights(tmp_path / "one")
    assert one.keys() == a.keys()
    assert all(torch.equal(one[n], b[n] if n in lacking else expected[n]) for n in one)
    assert any("no pooler in" in note for note in report.notes)
