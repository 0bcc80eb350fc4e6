"""Tiny random models, built in code: every parameter is drawn, so that no error hides behind a default of 0 or 1."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from merge.checkpoints.structure import structure_of
from merge.checkpoints.transformers_model import build

WORDS = ["the", "a", "doctor", "lawyer", "saw", "helped", "quietly", "and", "who", "near", "river", "##s", "."]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
NLI = ("entailment", "neutral", "contradiction")
# The cache of this run, which conftest.py makes; tests may point the variable elsewhere while they run.
RUN_CACHE = Path(os.environ["MERGE_MODELS_CACHE"])


def bert_config(architecture: str = "BertForSequenceClassification", **changes: Any) -> dict[str, Any]:
    """Return the config.json of a tiny BERT; sizes are all different, so that no two axes can be mixed up."""
    labels = changes.pop("labels", NLI)
    config = {
        "architectures": [architecture],
        "model_type": "bert",
        "vocab_size": len(SPECIAL) + len(WORDS),
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 40,
        "max_position_embeddings": 32,
        "type_vocab_size": 2,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    if architecture.endswith(("ForSequenceClassification", "ForTokenClassification")):
        config |= {"id2label": {str(i): name for i, name in enumerate(labels)}}
        config |= {"label2id": {name: i for i, name in enumerate(labels)}}
    return config | changes


def random_tensors(config: Mapping[str, Any], seed: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Return every stored tensor by the name transformers writes: gains 1 + .3 N, all others .3 N."""
    with mock.patch.dict(os.environ, MERGE_MODELS_CACHE=str(RUN_CACHE)):
        structure = structure_of(config)
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for name, shape in structure.shapes.items():
        if name in structure.ties:
            continue
        drawn = 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)
        out[name] = (drawn + (1.0 if name.endswith("LayerNorm.weight") else 0.0)).to(dtype)
    return out


def save_checkpoint(
    folder: Path,
    config: Mapping[str, Any] | None = None,
    seed: int = 0,
    tensors: Mapping[str, Tensor] | None = None,
    tokenizer: bool = True,
) -> Path:
    """Write a checkpoint as transformers does and return its folder.

    Random ones are made once in a run of the tests, and copied.
    """
    config = dict(config or bert_config())
    if tensors is None:
        shutil.copytree(_random_checkpoint(json.dumps(config), seed), folder, dirs_exist_ok=True)
    else:
        _write_model(folder, config, tensors)
    if tokenizer:
        save_tokenizer(folder)
    return folder


def empty_cache(folder: Path) -> Path:
    """Make a cache folder, empty but for what transformers makes of configs, which no test changes; and return it."""
    folder.mkdir()
    with contextlib.suppress(OSError):  # without links (Windows)
        (folder / "structures").symlink_to(RUN_CACHE / "structures", target_is_directory=True)
    return folder


@cache
def _random_checkpoint(config: str, seed: int) -> Path:
    """Return the folder, which all workers share, of the checkpoint with random tensors."""
    key = hashlib.sha256(f"{seed} {config}".encode()).hexdigest()
    folder = RUN_CACHE / "checkpoints" / key
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=folder.parent))
        _write_model(made, json.loads(config), random_tensors(json.loads(config), seed, torch.float32))
        with contextlib.suppress(OSError):  # another worker was first
            made.rename(folder)
    return folder


def _write_model(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a model's config and weights as transformers does; it writes the first of each config and dtype itself."""
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if len(dtypes) > 1 or not _is_written_as_it_is(config, tensors):
        _write_by_transformers(folder, config, tensors)
        return
    shutil.copytree(_template(json.dumps(config), dtypes.pop()), folder, dirs_exist_ok=True)
    whole = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})


def _is_written_as_it_is(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bool:
    """Return whether transformers writes just these tensors for the config: by their own names, with their own values."""
    weights = _template(json.dumps(config), next(iter(tensors.values())).dtype) / "model.safetensors"
    return weights.exists() and _kinds(load_file(weights)) == _kinds(tensors)


def _kinds(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


@cache
def _template(config: str, dtype: torch.dtype) -> Path:
    """Return the folder, which all workers share, of what transformers writes for a config and a dtype.

    It holds no weights where transformers writes other values than it is given.
    """
    key = hashlib.sha256(f"{dtype} {config}".encode()).hexdigest()
    folder = RUN_CACHE / "templates" / key
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=folder.parent))
        tensors = random_tensors(json.loads(config), 0, dtype)
        _write_by_transformers(made, json.loads(config), tensors)
        written = load_file(made / "model.safetensors")
        if any(name in tensors and not torch.equal(tensor, tensors[name]) for name, tensor in written.items()):
            (made / "model.safetensors").unlink()
        with contextlib.suppress(OSError):  # another worker was first
            made.rename(folder)
    return folder


def _write_by_transformers(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    model = build(config, tensors)
    model.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(
        json.dumps(written | {"architectures": config["architectures"]}), encoding="utf-8"
    )


def save_tokenizer(folder: Path, words: list[str] | None = None) -> None:
    """Write a WordPiece tokenizer of the tiny vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in _tokenizer_files(*SPECIAL, *(words or WORDS)).items():
        (folder / name).write_bytes(data)


@cache
def _tokenizer_files(*entries: str) -> dict[str, bytes]:
    """Return the files that transformers writes of a tokenizer, by name."""
    tokenizer = transformers.BertTokenizer(vocab={word: i for i, word in enumerate(entries)}, do_lower_case=True)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def write_text(path: Path, lines: int = 300) -> Path:
    """Write a calibration text of random sentences over the tiny vocabulary."""
    generator = torch.Generator().manual_seed(3)
    nouns = [word for word in WORDS if not word.startswith("##") and word != "."]
    with path.open("w", encoding="utf-8") as file:
        for _ in range(lines):
            length = int(torch.randint(3, 12, (1,), generator=generator))
            chosen = torch.randint(len(nouns), (length,), generator=generator).tolist()
            file.write(" ".join(nouns[i] for i in chosen) + " .\n")
    return path


def sentence(generator: random.Random, longest: int) -> str:
    """Return between 1 and `longest` random words."""
    return " ".join(generator.choices(WORDS[:11], k=generator.randint(1, longest)))
