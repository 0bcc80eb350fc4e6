"""Whether two models can be stitched into one checkpoint, and both as the plan of it reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.names.canonical import canonical_name
from merge.checkpoints.structure import structure_of
from merge.errors import MismatchError, UsageError, some
from merge.layers.assembly import check_fit
from merge.layers.parts import STREAM_WIDTHS
from merge.layers.stacks import FAMILIES, before_layers, layer_count, layer_of
from merge.layers.stitching.kinds import StitchSettings, check_cut

# What only embeddings depend on, which are the bottom model's: it may differ.
EMBEDDING_KEYS = ("type_vocab_size", "max_position_embeddings", "n_positions")
# The same where tokens are matched, and not equal.
VOCABULARY_KEYS = ("vocab_size", *(f"{name}_token_id" for name in ("pad", "bos", "eos", "cls", "sep", "mask", "unk")))
# Ends of the embeddings' own tensors; what else acts before the layers is read by every layer.
SHARED = ("relative_attention_bias.", "rel_embeddings.", "encoder.LayerNorm.", "encoder.conv.")
# Heads that give a logit to every token of the vocabulary.
TOKEN_HEADS = ("ForMaskedLM", "LMHeadModel", "ForCausalLM", "ForPreTraining")


def check_models(a: Checkpoint, b: Checkpoint, settings: StitchSettings) -> None:
    """Stop where no standard checkpoint can hold the stitch of two models.

    Raises:
        UsageError: a cut does not exist, or nothing is left of a model.
        MismatchError: other families, widths, activations, norms, positions or tokens.
    """
    if a.model_type != b.model_type:
        raise MismatchError(
            f"a checkpoint has layers of one architecture: {a.source} is {a.model_type}, {b.source} is {b.model_type}."
        )
    family = FAMILIES.get(a.model_type)
    if family is not None and len(family.stacks) > 1:
        named = " and ".join(stack.name for stack in family.stacks)
        raise UsageError(
            f"a {a.model_type} model has two lists of layers ({named}), which share no single stream to stitch."
        )
    totals = layer_count(a.config), layer_count(b.config)
    check_cut(settings.at, totals, (a.source, b.source))
    _check_widths(a, b)
    check_pair(a, b, settings)
    _check_shared(a, b)
    if settings.tokens == "offsets" and b.architecture.endswith(TOKEN_HEADS) and _other_tokens(a, b):
        raise MismatchError(
            f"the head of {b.source} ({b.architecture}) gives a logit to every token of its own vocabulary, but the stitched "
            f"model reads the tokens of {a.source}. Give a model without that head as B."
        )


def check_pair(a: Checkpoint, b: Checkpoint, settings: StitchSettings) -> None:
    """Stop where layers of both cannot run in one model, as `check_fit`; embeddings, which are A's, may differ.

    Raises:
        MismatchError: all differences in one message.
    """
    try:
        keys = EMBEDDING_KEYS if settings.tokens == "same" else (*EMBEDDING_KEYS, *VOCABULARY_KEYS)
        check_fit(a, b, settings.tokens == "same", keys)
    except MismatchError as error:
        if settings.tokens == "same" and _other_tokens(a, b):
            text = str(error).split(" Choose one: --tokenizer")[0].rstrip(".")
            raise MismatchError(
                f"{text}. --match-tokens offsets matches the tokens of two tokenizers by the characters that they cover."
            ) from None
        raise


def _other_tokens(a: Checkpoint, b: Checkpoint) -> bool:
    from merge.checkpoints.tokenizers.comparison import compare_tokenizers, tokenizer_of

    pair = [tokenizer_of(each.source, each.folder, each.config) for each in (a, b)]
    return pair[0] is not None and pair[1] is not None and bool(compare_tokenizers(pair[0], pair[1])[0])


def _check_widths(a: Checkpoint, b: Checkpoint) -> None:
    for key in STREAM_WIDTHS:
        left, right = a.structure.settings.get(key), b.structure.settings.get(key)
        if left != right:
            raise MismatchError(
                f"{a.source} has states of {left} units ({key}) and {b.source} of {right}: a standard config has one width, and "
                "no layer of it reads one width and writes another. evaluate-models stitch measures the stitch unwritten."
            )


def _check_shared(a: Checkpoint, b: Checkpoint) -> None:
    """Stop where a table that all layers read differs: one model can have only one."""
    if a.encoder.content_hash == b.encoder.content_hash:
        return
    family = a.model_type
    for model in (a, b):
        names = [name for name in model.encoder.tensors if _is_shared(name, family)]
        other = b if model is a else a
        for name in names:
            twin = _named_in(other, name, model)
            if twin is None or not bool((model.tensor(name) == other.tensor(twin)).all()):
                raise MismatchError(
                    f"all layers of a {family} model read one {name}, and that of {a.source} is not that of {b.source}: layers "
                    "of both cannot keep theirs in one checkpoint. evaluate-models stitch measures the stitch without writing it."
                )


def _is_shared(name: str, family: str) -> bool:
    return layer_of(name, family) is None and before_layers(name, family) and any(part in name for part in SHARED)


def _named_in(other: Checkpoint, name: str, model: Checkpoint) -> str | None:
    """Return the name that a tensor of one model has in another, whose class may write another prefix."""
    bare = name.removeprefix(f"{model.structure.prefix}.")
    return next((n for n in (name, bare, f"{other.structure.prefix}.{bare}") if n in other.encoder.tensors), None)


def with_names_of(a: Checkpoint, b: Checkpoint) -> Checkpoint:
    """Return the bottom model with the names that its tensors have in the class of the top model."""
    prefix = b.structure.prefix
    if not prefix or a.structure.writes_prefix == b.structure.writes_prefix:
        return a
    base = f"{prefix}."
    if b.structure.writes_prefix:
        renamed = {name if name.startswith(base) else base + name: stored for name, stored in a.tensors.items()}
    else:
        renamed = {name.removeprefix(base): stored for name, stored in a.tensors.items()}
    return replace(a, tensors=renamed)


def with_own_head(b: Checkpoint, a: Checkpoint) -> tuple[Checkpoint, tuple[str, ...]]:
    """Return the top model with a head of its own where it shares the embeddings, which the stitched model has of A; and notes.

    Raises:
        MismatchError: the family always ties its head to the embeddings.
    """
    family = b.model_type
    tied = {
        target: source
        for target, source in b.structure.ties.items()
        if before_layers(canonical_name(source, b.structure), family)
        and not before_layers(canonical_name(target, b.structure), family)
        and layer_of(canonical_name(target, b.structure), family) is None
    }
    if not tied or a.encoder.content_hash == b.encoder.content_hash:
        return b, ()
    config: Mapping[str, Any] = {**b.config, "tie_word_embeddings": False}
    structure = structure_of(config)
    if kept := [name for name in tied if name in structure.ties]:
        raise MismatchError(
            f"the head of {b.source} is always its embeddings ({some(kept)}), but the stitched model has those of {a.source}."
        )
    names = {target: source for target, source in b.structure.ties.items() if target not in structure.ties}
    added = {
        canonical_name(target, structure): b.tensors[canonical_name(source, b.structure)]
        for target, source in names.items()
        if canonical_name(target, structure) not in b.tensors
    }
    note = (
        f"the head of {b.source} was tied to its embeddings; it is a tensor of its own now (tie_word_embeddings: false), as the "
        f"embeddings are those of {a.source}"
    )
    return replace(b, structure=structure, tensors=dict(sorted({**b.tensors, **added}.items()))), (note,)
