"""The parts of a repository's layout: names of tensors as they were written, files that hold them, tokenizers of every kind."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from tiny import SPECIAL, WORDS, save_tokenizer
from torch import Tensor

Tensors = dict[str, Tensor]
Config = Mapping[str, Any]
ROWS = 64  # of every embedding table: more than any of the tokenizers has tokens

# Names.


def prefixed(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def within(part: str, wrapper: str) -> Callable[[Tensors], Tensors]:
    """Name a wrapper inside: torch.compile, FSDP and activation checkpointing wrap single layers too."""
    return lambda tensors: {name.replace(part, f"{part}{wrapper}.", 1): tensor for name, tensor in tensors.items()}


def gamma_beta(tensors: Tensors) -> Tensors:
    return {
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
        for n, t in tensors.items()
    }


def with_tensors(**shapes: tuple[int, ...]) -> Callable[[Tensors], Tensors]:
    """Add tensors that the class does not have, by name with __ for a dot; the numbers follow from the model's own."""

    def add(tensors: Tensors) -> Tensors:
        seed = int(sum(float(t.double().abs().sum()) for t in tensors.values()) * 1000) % 2**31
        generator = torch.Generator().manual_seed(seed)
        made = {n.replace("__", "."): torch.randn(s, generator=generator) for n, s in shapes.items()}
        return {**tensors, **made}

    return add


def with_positions(name: str, count: int) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: torch.arange(count)[None]}


def twin(copy: str, source: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, copy: tensors[source].clone()}


def without(part: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


def halved(tensors: Tensors) -> Tensors:
    return {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


# Files.


def safetensors(folder: Path, tensors: Tensors) -> None:
    whole = {n: t.clone(memory_format=torch.contiguous_format) for n, t in tensors.items()}
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})


def pickle(folder: Path, tensors: Tensors) -> None:
    torch.save(tensors, folder / "pytorch_model.bin")


def both_files(folder: Path, tensors: Tensors) -> None:
    safetensors(folder, tensors)
    pickle(folder, tensors)


def shards(folder: Path, tensors: Tensors) -> None:
    _shards(folder, tensors, "model", "safetensors", lambda part, path: save_file(part, path))


def pickle_shards(folder: Path, tensors: Tensors) -> None:
    _shards(folder, tensors, "pytorch_model", "bin", torch.save)


def _shards(folder: Path, tensors: Tensors, stem: str, end: str, save: Callable[[Any, Path], Any]) -> None:
    placed = {name: f"{stem}-{k % 3 + 1:05}-of-00003.{end}" for k, name in enumerate(tensors)}
    for shard in dict.fromkeys(placed.values()):
        save({n: t.contiguous() for n, t in tensors.items() if placed[n] == shard}, folder / shard)
    write_json(folder / f"{stem}.{end}.index.json", {"metadata": {"total_size": 1}, "weight_map": placed})


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


# Tokenizers; each writes its files beside a config.json.


def wordpiece(folder: Path) -> None:
    """Write what transformers 5 writes: tokenizer.json and tokenizer_config.json."""
    save_tokenizer(folder)


def wordpiece_4(folder: Path) -> None:
    """Write what transformers 4 wrote: vocab.txt and the special tokens' map beside tokenizer.json."""
    save_tokenizer(folder)
    vocab_txt(folder)
    roles = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    write_json(folder / "special_tokens_map.json", dict(zip(roles, SPECIAL, strict=True)))
    decoder = {str(i): {"content": token, "special": True} for i, token in enumerate(SPECIAL)}
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    write_json(folder / "tokenizer_config.json", settings | {"added_tokens_decoder": decoder})


def vocab_txt(folder: Path) -> None:
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *WORDS]) + "\n", encoding="utf-8")


def vocab_txt_cased(folder: Path) -> None:
    vocab_txt(folder)
    write_json(folder / "tokenizer_config.json", {"do_lower_case": False})


BPE_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
MERGES = ("t h", "th e", "\u0120 d", "\u0120d o", "\u0120 the", "s a", "sa w", "\u0120 saw")


@cache
def bpe_vocab() -> dict[str, int]:
    letters = [*"abcdefghijklmnopqrstuvwxyz.", "\u0120"]
    return {token: i for i, token in enumerate([*BPE_SPECIAL, *letters, *(m.replace(" ", "") for m in MERGES)])}


def vocab_and_merges(folder: Path) -> None:
    """Write RoBERTa's first files, as codebert has them."""
    write_json(folder / "vocab.json", bpe_vocab())
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]) + "\n", encoding="utf-8")


def byte_level_bpe(folder: Path) -> None:
    vocab_and_merges(folder)
    (folder / "tokenizer.json").write_bytes(_converted("RobertaTokenizer"))


@cache
def _converted(name: str) -> bytes:
    tokenizer = getattr(transformers, name)(vocab=bpe_vocab(), merges=[tuple(m.split(" ")) for m in MERGES])
    return bytes(tokenizer.backend_tokenizer.to_str().encode())


@cache
def _sentencepiece(special: tuple[str, ...]) -> bytes:
    import sentencepiece

    out, sentences = (
        io.BytesIO(),
        ["the doctor saw the lawyer near the river", "a lawyer helped who quietly and ."] * 50,
    )
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=out, vocab_size=40, hard_vocab_limit=False, minloglevel=2,
        normalization_rule_name="identity", user_defined_symbols=list(special), model_type="unigram",
    )  # fmt: skip
    return out.getvalue()


def sentencepiece(name: str, *special: str) -> Callable[[Path], None]:
    """Write a sentencepiece model alone, under the name that a family gives it."""
    return lambda folder: (folder / name).write_bytes(_sentencepiece(special)) and None


def no_tokenizer(folder: Path) -> None:
    pass


# sentence-transformers.


def pipeline(
    *kinds: str, version: str = "2.2.2", mode: str = "mean", size: int = 24, **general: Any
) -> Callable[[Path], None]:
    """Write the modules of a folder as sentence-transformers 2 to 5 do: old names of settings and classes."""

    def write(folder: Path) -> None:
        names = ["Transformer", *kinds]
        modules = [
            {
                "idx": i,
                "name": str(i),
                "path": f"{i}_{kind}" if i else "",
                "type": f"sentence_transformers.models.{kind}",
            }
            for i, kind in enumerate(names)
        ]
        write_json(folder / "modules.json", modules)
        for i, kind in enumerate(names):
            if kind == "Pooling":
                modes = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens"}
                chosen = {f"pooling_mode_{end}": key == mode for key, end in modes.items()}
                write_json(folder / f"{i}_Pooling" / "config.json", {"word_embedding_dimension": size, **chosen})
            if kind == "Dense":
                settings = {"in_features": size, "out_features": 10, "bias": False}
                activation = {"activation_function": "torch.nn.modules.linear.Identity"}
                write_json(folder / f"{i}_Dense" / "config.json", settings | activation)
                seed = len(list(folder.parent.iterdir()))
                weight = torch.randn(10, size, generator=torch.Generator().manual_seed(seed))
                save_file({"linear.weight": weight}, folder / f"{i}_Dense" / "model.safetensors")
        versions = {"sentence_transformers": version, "transformers": "4.30.2", "pytorch": "2.0.1"}
        write_json(folder / "config_sentence_transformers.json", {"__version__": versions} | general)
        write_json(folder / "sentence_bert_config.json", {"max_seq_length": 32, "do_lower_case": False})

    return write


def trainer_state(folder: Path) -> None:
    """Write what Trainer leaves in checkpoint-500 beside the model."""
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        torch.save({"step": 500}, folder / name)
    write_json(folder / "trainer_state.json", {"global_step": 500})


def beside(**files: Any) -> Callable[[Path], None]:
    """Write files beside the weights, by name with __ for a dot: bytes as they are, anything else as JSON."""

    def write(folder: Path) -> None:
        for name, value in files.items():
            path = folder / name.replace("__", ".")
            if isinstance(value, bytes):
                path.write_bytes(value)
            else:
                write_json(path, value)

    return write
