"""Open a checkpoint folder or Hub id by its headers; drop what is stored twice, after checking that it is a copy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.config_file import check_sizes, check_tokenizer_config, read_config, without_attention_kernel
from merge.checkpoints.hub.canonical_ids import CANONICAL_IDS
from merge.checkpoints.hub.download import download, looks_like_hub_id
from merge.checkpoints.modules import module_tensors
from merge.checkpoints.names.buffers import buffer_of
from merge.checkpoints.names.stored_class import read_names
from merge.checkpoints.side_files import side_files
from merge.checkpoints.transformers_model import base_architecture
from merge.checkpoints.weights.other_kinds import check_adapter, check_no_adapter_tensors, without_quantization
from merge.checkpoints.weights.read import StoredTensor, read_headers
from merge.errors import CheckpointError, first_line, some

if TYPE_CHECKING:
    from numpy.typing import NDArray


def open_checkpoint(source: str, revision: str | None = None) -> Checkpoint:
    """Open a local folder, or a Hub id where no such folder exists, reading headers only.

    The tensors of sentence-transformers modules are the checkpoint's too; `Checkpoint.encoder` is without them.

    Raises:
        CheckpointError: the path is missing, is no checkpoint, or holds something that cannot be read.
        HubError: a Hub id that cannot be fetched.
    """
    encoder = open_encoder(source, revision)
    files = (*encoder.left_behind, *encoder.side_files)
    tensors = module_tensors(encoder.folder, source, encoder.modules or (), files)
    if not tensors:
        return encoder
    read = {stored.file for stored in tensors.values()}
    left = tuple(name for name in encoder.left_behind if name not in read)
    return replace(encoder, tensors={**encoder.tensors, **tensors}, left_behind=left)


def open_base(source: str, revision: str | None = None) -> Checkpoint:
    """Open the base of a merge, whose head is not asked for: without `architectures` it is its family's base model.

    Raises:
        CheckpointError, HubError: as `open_checkpoint`.
    """
    folder, _ = _locate(source, revision)
    config = read_config(folder, source)
    if config.get("architectures"):
        return open_checkpoint(source, revision)
    opened = open_encoder(source, revision, base_only=True)
    note = f"{source}: config.json names no class; as the base it is read as {opened.architecture}"
    return replace(opened, notes=(note, *opened.notes))


def open_encoder(source: str, revision: str | None = None, base_only: bool = False) -> Checkpoint:
    """Open what transformers loads of a folder or Hub id; weights of sentence-transformers modules are not looked at.

    Args:
        base_only: whether a config that names no class is read as its family's base model.
    Raises:
        CheckpointError, HubError: as `open_checkpoint`.
    """
    folder, commit = _locate(source, revision)
    check_adapter(folder, source)
    config = read_config(folder, source)
    check_tokenizer_config(folder, source)
    stored = read_headers(folder, source)
    check_no_adapter_tensors(stored, source)
    config, quantization_notes = without_quantization(config, stored, source)
    config, attention_notes = without_attention_kernel(config, source)
    check_sizes(config, stored, source)
    if base_only and not config.get("architectures"):
        config = {**config, "architectures": [base_architecture(config)]}
    named = read_names(config, stored, source)
    notes = (*quantization_notes, *attention_notes, *named.notes)
    side, left = side_files(folder, {t.file for t in stored.values()})
    prefixed = named.structure.writes_prefix
    opened = Checkpoint(
        source, folder, commit, named.structure, named.tensors, prefixed, side, left, notes, named.extra
    )
    _check_shapes(opened)
    kept, copy_notes = _drop_copies(opened)
    kept = dict(sorted(kept.items()))  # the same order whatever that of files and shards
    return replace(opened, tensors=kept, notes=(*notes, *copy_notes, *_mixed_dtypes(kept, source)))


def _mixed_dtypes(tensors: Mapping[str, StoredTensor], source: str) -> list[str]:
    counts = Counter(stored.dtype for stored in tensors.values() if not stored.is_integer)
    listed = ", ".join(f"{count} {dtype}" for dtype, count in sorted(counts.items()))
    return [f"{source}: its tensors are of several dtypes: {listed}"] if len(counts) > 1 else []


def _locate(source: str, revision: str | None) -> tuple[Path, str | None]:
    try:
        folder = Path(source).expanduser()
        is_folder, exists = folder.is_dir(), folder.exists()
    except (OSError, RuntimeError) as error:  # a name too long, a user that does not exist
        raise CheckpointError(f"{source}: not a path that can be read: {first_line(error)}") from error
    if is_folder:
        if revision is not None:
            raise CheckpointError(f"{source} is a local folder, which has no revision {revision!r}. Drop --revision.")
        return folder, None
    if exists:
        raise CheckpointError(f"{source} is a file; expected a checkpoint folder (config.json and model.safetensors).")
    repo_id = CANONICAL_IDS.get(source, source)
    if looks_like_hub_id(repo_id):
        snapshot = download(repo_id, revision)
        return snapshot.folder, snapshot.commit
    raise CheckpointError(f"{source}: no such folder, and not a Hub id of the form org/name.")


def _check_shapes(opened: Checkpoint) -> None:
    """Stop where the shapes of tensors are not those that config.json gives."""
    expected = opened.structure.shapes
    wrong = [
        f"{name} is {opened.tensors[name].shape}, by config.json {expected[written]}"
        for name in opened.tensors
        if (written := opened.written_name(name)) in expected and opened.tensors[name].shape != expected[written]
    ]
    if wrong:
        raise CheckpointError(
            f"{opened.source}: the weights are not of the sizes that config.json states: {some(wrong, separator='; ')}."
        )


def _drop_copies(opened: Checkpoint) -> tuple[dict[str, StoredTensor], list[str]]:
    """Drop tied tensors and buffers, after checking that they are copies or follow from the config."""
    kept, notes = dict(opened.tensors), []
    structure = opened.structure
    for target, source in ((opened.canonical_name(t), opened.canonical_name(s)) for t, s in structure.ties.items()):
        if target not in kept:
            continue
        if source not in kept:
            kept[source] = kept.pop(target)
            continue
        if not _equal(opened, target, source):
            raise CheckpointError(
                f"{opened.source}: {target} and {source} differ, but config.json ties them. "
                "Set tie_word_embeddings to false, or save the model again with save_pretrained."
            )
        del kept[target]
        notes.append(f"{opened.source}: {target} is a copy of {source} (tied); kept once")
    return _drop_buffers(opened, kept, notes)


def _drop_buffers(
    opened: Checkpoint, tensors: Mapping[str, StoredTensor], notes: list[str]
) -> tuple[dict[str, StoredTensor], list[str]]:
    """Drop buffers, after checking that they are what the config gives."""
    dropped: dict[str, list[str]] = {}
    for name in (n for n in tensors if opened.written_name(n) not in opened.structure.shapes):
        buffer = buffer_of(name, len(tensors[name].shape))
        if buffer is None:
            continue
        if not buffer.matches(_numbers(opened, name), opened.structure):
            raise CheckpointError(
                f"{opened.source}: {name} is not {buffer.content}: {buffer.other} of its own cannot be kept."
            )
        dropped.setdefault(buffer.content, []).append(name)
    dropped_notes = [
        f"{opened.source}: {first}{f' and {len(more)} more' if more else ''} ({content}) "
        "is no longer stored by transformers; left out"
        for content, (first, *more) in dropped.items()
    ]
    left_out = {name for names in dropped.values() for name in names}
    return {name: stored for name, stored in tensors.items() if name not in left_out}, [*notes, *dropped_notes]


def _numbers(opened: Checkpoint, name: str) -> NDArray[Any]:
    numbers = opened.array(name)
    return numbers if numbers.dtype.kind != "V" else opened.tensor(name).float().numpy()


def _equal(opened: Checkpoint, a: str, b: str) -> bool:
    import numpy as np

    left, right = (opened.array(name) for name in (a, b))
    bits = f"u{left.dtype.itemsize}"
    if left.dtype == right.dtype and np.array_equal(left.view(bits), right.view(bits)):
        return True
    import torch  # equal numbers may have other bytes: another dtype, zeros of another sign

    return torch.equal(opened.tensor(a), opened.tensor(b))
