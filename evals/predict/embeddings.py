"""Sentence-transformers folders as predictors: the embedding of a text, and a pair's similarity as the cosine of two.

The pipeline is what the library does: prompt, tokens, encoder, pooling, dense layers, normalisation. It is written out here so
that weights can be replaced in place along a path, and the library need not be installed; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from merge.checkpoints.checkpoint import Checkpoint, finite_tensors
from merge.checkpoints.inputs import load_tokenizer
from merge.checkpoints.modules import POOLING_MODES, Module, is_module_tensor
from merge.checkpoints.open import open_checkpoint
from merge.checkpoints.sentence_transformers import pipeline_facts, pipeline_kind
from merge.checkpoints.transformers_model import build
from merge.disk.documents import read_object
from merge.errors import CheckpointError, TaskError

if TYPE_CHECKING:
    from evals.tasks.task import Rows

EMBEDDER = "SentenceTransformer"
# Modules without weights, and those with them, that the pipeline is made of; other kinds are refused by name.
KNOWN = ("Transformer", "Pooling", "Dense", "LayerNorm", "Normalize", "Dropout")


def embeds(checkpoint: Checkpoint) -> bool:
    """Return whether a folder holds a model of sentence embeddings, and no classifier."""
    modules = checkpoint.modules
    return (
        modules is not None
        and pipeline_kind(checkpoint) == EMBEDDER
        and any(module.kind == "Pooling" for module in modules)
        and not checkpoint.architecture.endswith("ForSequenceClassification")
    )


def with_modules(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint as it is evaluated: with the weights of its modules where it embeds, else the encoder alone."""
    if not embeds(checkpoint):
        return checkpoint.encoder
    if any(map(is_module_tensor, checkpoint.tensors)):
        return checkpoint
    opened = open_checkpoint(str(checkpoint.folder))
    return replace(checkpoint, tensors=opened.tensors)


def embedding_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return all settings that decide the embeddings, for the key of a result."""
    return pipeline_facts(checkpoint) or {}


def single_texts(checkpoint: Checkpoint, rows: Rows) -> Rows:
    """Return the texts that are embedded, prompts included: all first texts of the pairs, then all second ones."""
    facts = embedding_facts(checkpoint)
    if any(len(pair) != 2 for pair in rows.texts):
        raise TaskError(
            f"{checkpoint.source} embeds texts, and a similarity takes two of them; these rows have one text."
        )
    prompt, lower = _prompt(facts), bool(facts.get("do_lower_case"))
    texts = [prompt + pair[side] for side in (0, 1) for pair in rows.texts]
    return replace(rows, texts=tuple((text.lower() if lower else text,) for text in texts))


def longest_text(checkpoint: Checkpoint) -> int | None:
    """Return how many tokens of a text the pipeline reads; None where it states no limit, and the tokenizer's counts."""
    stated = embedding_facts(checkpoint).get("max_seq_length")
    return stated if isinstance(stated, int) else None


def cosines(embeddings: Float[Tensor, "texts size"]) -> Float[Tensor, "rows 1"]:
    """Return the cosine of each first text's embedding and its second's, in the order of `single_texts`."""
    first, second = nn.functional.normalize(embeddings.double(), dim=1).chunk(2)
    return (first * second).sum(1, keepdim=True).float()


def build_embedder(checkpoint: Checkpoint, dtype: torch.dtype) -> SentenceEncoder:
    """Return the pipeline of a sentence-transformers folder, in evaluation mode.

    Raises:
        TaskError: it has a module of a kind that is not known.
    """
    whole, modules = with_modules(checkpoint), checkpoint.modules or ()
    if unknown := [module.kind for module in modules if module.kind not in KNOWN]:
        raise TaskError(f"{checkpoint.source}: the module {unknown[0]} is not known; known are {', '.join(KNOWN)}.")
    tensors = {whole.written_name(name): tensor for name, tensor in finite_tensors(whole).items()}
    encoder = {name: tensor for name, tensor in tensors.items() if not is_module_tensor(name)}
    absent = {n: torch.zeros(s) for n, s in whole.structure.shapes.items() if n not in encoder and "pooler." in n}
    model = build(whole.config, {**encoder, **absent}, dtype)
    facts = embedding_facts(checkpoint)
    prompt = _prompt(facts)
    tokens = len(load_tokenizer(checkpoint.folder)(prompt)["input_ids"]) if prompt else 0
    steps = [_step(checkpoint, module, tokens, tensors) for module in modules]
    made = SentenceEncoder(model, [step for step in steps if step is not None], facts.get("truncate_dim"))
    return made.to(dtype).eval()


def set_embedder(embedder: SentenceEncoder, tensors: Mapping[str, Tensor]) -> None:
    """Copy weights into a pipeline in place, by the names that a checkpoint with its modules writes."""
    state = embedder.state_dict()
    with torch.no_grad():
        for name, tensor in tensors.items():
            state[_state_name(embedder, name)].copy_(tensor)


def _state_name(embedder: SentenceEncoder, name: str) -> str:
    if not is_module_tensor(name):
        return f"encoder.{name}"
    path, _, rest = name.rpartition("/")
    at = next(k for k, step in enumerate(embedder.steps) if getattr(step, "path", None) == path)
    return f"steps.{at}.inner.{rest}"


def _prompt(facts: Mapping[str, Any]) -> str:
    """Return the default prompt; "" where there is none."""
    return str((facts.get("prompts") or {}).get(facts.get("default_prompt_name"), ""))


def _step(
    checkpoint: Checkpoint, module: Module, prompt_tokens: int, tensors: Mapping[str, Tensor]
) -> nn.Module | None:
    """Return a module of the pipeline; None for the encoder and for what does nothing when a model is evaluated."""
    if module.kind == "Pooling":
        include = module.settings.get("include_prompt", True)
        return Pooling(_modes(checkpoint, module), 0 if include or not prompt_tokens else prompt_tokens - 1)
    if module.kind == "Normalize":
        return Normalize()
    weights = {n.removeprefix(f"{module.path}/"): t for n, t in tensors.items() if n.startswith(f"{module.path}/")}
    if module.kind == "LayerNorm":
        return Weighted(module.path, nn.ModuleDict({"norm": nn.LayerNorm(len(weights["norm.weight"]))}), weights)
    if module.kind == "Dense":
        return Weighted(module.path, _dense(module, weights), weights, bool(module.settings.get("use_residual")))
    return None


def _modes(checkpoint: Checkpoint, module: Module) -> tuple[str, ...]:
    """Return the pooling modes in the order in which their vectors are joined."""
    stated = read_object(checkpoint.folder / module.path / "config.json", CheckpointError)
    modes = stated.get("pooling_mode") or [mode for key, mode in POOLING_MODES.items() if stated.get(key)] or ["mean"]
    return (modes,) if isinstance(modes, str) else tuple(modes)


def _dense(module: Module, weights: Mapping[str, Tensor]) -> nn.ModuleDict:
    name = str(module.settings.get("activation_function", "Tanh"))
    activation = getattr(nn, name, None)
    if not (isinstance(activation, type) and issubclass(activation, nn.Module)):
        raise TaskError(f"{module.path}: the activation {name} is none of torch.nn.")
    parts = nn.ModuleDict({"activation": activation()})
    for part in ("linear", "residual"):
        if f"{part}.weight" in weights:
            size = weights[f"{part}.weight"].shape
            parts[part] = nn.Linear(size[1], size[0], bias=f"{part}.bias" in weights)
    return parts


@final
class SentenceEncoder(nn.Module):
    """An encoder and the modules behind it; its `logits` are embeddings."""

    def __init__(self, encoder: Any, steps: list[nn.Module], size: int | None) -> None:
        super().__init__()
        self.encoder, self.steps, self.size = encoder, nn.ModuleList(steps), size
        self.config = encoder.config

    @property
    def base_model(self) -> Any:
        return self.encoder.base_model

    @property
    def device(self) -> torch.device:
        return torch.device(self.encoder.device)

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.encoder.dtype
        return dtype

    def forward(self, **batch: Tensor) -> SimpleNamespace:
        out = self.encoder.base_model(**batch)[0]
        for step in self.steps:
            out = step(out, batch["attention_mask"]) if isinstance(step, Pooling) else step(out)
        return SimpleNamespace(logits=out[:, : self.size])


@final
class Pooling(nn.Module):
    """The vectors of a text's tokens as one; several modes are joined."""

    def __init__(self, modes: tuple[str, ...], skipped: int) -> None:
        super().__init__()
        if unknown := [mode for mode in modes if mode not in POOLING_MODES.values()]:
            raise TaskError(
                f"the pooling mode {unknown[0]} is not known; known are {', '.join(POOLING_MODES.values())}."
            )
        self.modes, self.skipped = modes, skipped

    def forward(self, hidden: Float[Tensor, "texts tokens size"], mask: Tensor) -> Float[Tensor, "texts size"]:
        """Return one vector a text; the first `skipped` tokens of each, its prompt, are left out."""
        order = mask.cumsum(1)  # 1 at a text's first token, wherever the padding is
        counted = mask * (order > self.skipped)
        return torch.cat([self._pool(hidden, counted, order, mode) for mode in self.modes], 1)

    def _pool(self, hidden: Tensor, mask: Tensor, order: Tensor, mode: str) -> Tensor:
        weights = mask.unsqueeze(-1).to(torch.promote_types(hidden.dtype, torch.float32))
        if mode in ("cls", "lasttoken"):
            at = mask.argmax(1) if mode == "cls" else mask.shape[1] - 1 - mask.flip(1).argmax(1)
            return hidden[torch.arange(len(hidden), device=hidden.device), at]
        if mode == "max":
            return hidden.masked_fill(mask.unsqueeze(-1) == 0, float("-inf")).amax(1)
        if mode == "weightedmean":
            weights = weights * order.unsqueeze(-1)
        count = weights.sum(1).clamp(min=1e-9)
        summed = (hidden * weights).sum(1)
        return (summed / (count.sqrt() if mode == "mean_sqrt_len_tokens" else count)).to(hidden.dtype)


@final
class Normalize(nn.Module):
    """Vectors of length 1."""

    def forward(self, vectors: Tensor) -> Tensor:
        return nn.functional.normalize(vectors, dim=1)


@final
class Weighted(nn.Module):
    """A dense layer or a layer norm, with its weights."""

    def __init__(self, path: str, inner: nn.ModuleDict, weights: Mapping[str, Tensor], adds: bool = False) -> None:
        super().__init__()
        inner.load_state_dict(dict(weights))
        self.path, self.inner, self.adds = path, inner, adds

    def forward(self, vectors: Tensor) -> Tensor:
        if "norm" in self.inner:
            normed: Tensor = self.inner["norm"](vectors)
            return normed
        out: Tensor = self.inner["activation"](self.inner["linear"](vectors))
        if self.adds:
            out = out + (self.inner["residual"](vectors) if "residual" in self.inner else vectors)
        return out
