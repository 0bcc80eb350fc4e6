"""Union of tokenizers: one tokenizer with the tokens of all models that splits texts as they do, or an error."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from merge.checkpoints.tokenizers.tokenizer import FLAGS, Tokenizer, load, loaded_tokenizer, parse, product, unbounded
from merge.errors import CheckpointError, MismatchError, OutputError, some

INSTEAD = "Take the vocabulary of one model instead of the union."
CONTINUATIONS = 8  # pieces tried for each way in which a new token can hide the beginning of a word


def unite(tokenizers: Sequence[Tokenizer], sources: Sequence[str]) -> tuple[Tokenizer, tuple[str, ...]]:
    """Return the union, and the special tokens without a role that the first model does not list.

    The model's own vocabulary grows, never the list of added tokens, so that WordPiece's longest match and BPE's merges find
    the new tokens. Merges keep the first model's ranks; new ones of later models follow in their order.

    Raises:
        MismatchError: kinds or settings differ, a token is added in one model and ordinary in another, ids have gaps,
            or a word that a model knows would become unknown.
    """
    _check_kinds(tokenizers, sources)
    extra = _check_as_loaded(tokenizers, sources)
    added = _united_added(tokenizers, sources)
    for tokenizer, source in zip(tokenizers, sources, strict=True):
        _check_gapless(tokenizer, source)
    first = tokenizers[0]
    if first.kind != "Unigram" and (old := sorted(first.folder.glob("*.model"))):
        raise MismatchError(
            f"no union of tokenizers: {old[0].name} of {sources[0]} cannot be rewritten, and would say other than the "
            "tokenizer.json of the union. Take it out of the folder, or take the vocabulary of one model."
        )
    vocab = _united_vocab(tokenizers)
    model = {**first.stored["model"]}
    if first.kind != "Unigram":
        model["vocab"] = vocab
    if first.kind == "BPE":
        model["merges"] = _united_merges(tokenizers, sources, vocab)
    tokens = dict(vocab)
    for content in added:
        tokens.setdefault(content, len(tokens))
    numbered: list[dict[str, Any]] = [{"id": tokens[c], "content": c} | flags for c, flags in added.items()]
    entries = sorted(numbered, key=lambda token: int(token["id"]))
    stored = {**first.stored, "model": model, "added_tokens": entries}
    stored["post_processor"] = with_ids(first.stored["post_processor"], tokens)
    if stored["padding"] and stored["padding"]["pad_token"] in tokens:
        stored["padding"] = {**stored["padding"], "pad_id": tokens[stored["padding"]["pad_token"]]}
    result = parse(json.dumps(stored), first.folder)
    for tokenizer, source in zip(tokenizers, sources, strict=True):
        if broken := broken_words(tokenizer, tokenizer.backend(), result.backend(), result):
            more = f" ({len(broken)} such)" if len(broken) > 1 else ""
            raise MismatchError(
                f"in the union of the tokenizers a text of {source} breaks: {broken[0]}{more}. {INSTEAD}"
            )
    return result, extra


def setting_differences(a: Mapping[str, Any], b: Mapping[str, Any], left: str, right: str) -> dict[str, str]:
    """Return the name of each setting that differs -> a sentence on it; an absent setting counts as None."""
    names = [name for name in {**a, **b} if a.get(name) != b.get(name)]
    return {n: f"{n} is {_short(a.get(n))} in {left}, {_short(b.get(n))} in {right}" for n in names}


def broken_words(parent: Tokenizer, before: Any, after: Any, result: Tokenizer) -> list[str]:
    """Return a sentence for each word that the parent reads and the result does not.

    A word breaks when it becomes unknown, or when a token that the parent's merges make is no longer made.

    Args:
        before, after: the parent's and the result's tokenizers of the tokenizers library, without truncation and padding.
    """
    if parent.kind == "BPE":
        old, new = before.model, after.model
        reached = [t for t in parent.vocab if [p.value for p in old.tokenize(t)] == [t]]
        ends = {t: [p.value for p in new.tokenize(t)] for t in reached}
        return [f"{t!r} comes out as {' '.join(ends[t]) or 'nothing'}" for t in reached if ends[t] != [t]]
    unknown = parent.stored["model"].get("unk_token")
    broken = []
    for word in _sample(parent, result):
        was, now = (backend.encode(word, add_special_tokens=False).tokens for backend in (before, after))
        if unknown in now and unknown not in was:
            broken.append(f"{word!r} was {' '.join(was)} and comes out as {' '.join(now)}")
    return broken


def _sample(parent: Tokenizer, result: Tokenizer) -> list[str]:
    """Return every word of the parent's vocabulary, and words made of pieces: one for each piece, and those at risk.

    At risk is a word whose beginning a new token hides from the longest match: P + piece, where new token = P + the
    beginning of the piece.
    """
    words = [token for token in parent.vocab if token not in parent.added]
    prefix = parent.stored["model"].get("continuing_subword_prefix")
    if parent.kind != "WordPiece" or not prefix:
        return words
    whole = [token for token in words if not token.startswith(prefix)]
    stems = [token for token in whole if token.isalnum()]
    pieces = sorted(token.removeprefix(prefix) for token in words if token.startswith(prefix))
    if not stems or not pieces:
        return whole
    starting: dict[str, list[str]] = {}
    for piece in pieces:
        for end in range(1, len(piece)):
            same = starting.setdefault(piece[:end], [])
            if len(same) < CONTINUATIONS:
                same.append(piece)
    made = [stems[i % len(stems)] + piece for i, piece in enumerate(pieces)]
    for token in result.vocab.keys() - parent.tokens.keys():
        inside = token.startswith(prefix)
        text = token.removeprefix(prefix) if inside else token
        for end in range(1, len(text)):
            if (prefix + text[:end] if inside else text[:end]) in parent.vocab:
                begun = stems[0] + text[:end] if inside else text[:end]
                made += [begun + piece for piece in starting.get(text[end:], ())]
    return [*whole, *sorted(made)]


def check_written(folder: Path, planned: Tokenizer, settings_of: Tokenizer, parents: Sequence[Tokenizer]) -> None:
    """Stop unless transformers loads from `folder` the planned ids and settings, and reads the parents' words as they do.

    Raises:
        OutputError: a token has another id, a setting changed, or a word became unknown that a parent knows.
    """
    try:
        loaded = load(folder)
        result = loaded_tokenizer(loaded, folder)
        expected = loaded_tokenizer(load(settings_of.folder), settings_of.folder)
    except CheckpointError as error:
        raise OutputError(f"the merged tokenizer does not load: {error} Nothing was written.") from error
    wrong = sorted(
        t for t in planned.tokens.keys() | result.tokens.keys() if planned.tokens.get(t) != result.tokens.get(t)
    )
    if wrong:
        raise OutputError(
            f"the merged tokenizer does not load as planned: {len(wrong)} tokens have another id, such as {wrong[0]!r} "
            f"{result.tokens.get(wrong[0])}, planned {planned.tokens.get(wrong[0])}. Nothing was written."
        )
    if changed := setting_differences(expected.settings, result.settings, str(settings_of.folder), "the result"):
        raise OutputError(
            f"the merged tokenizer does not load as planned: {next(iter(changed.values()))}. Nothing was written."
        )
    if with_ids(result.stored["post_processor"], planned.tokens) != result.stored["post_processor"]:
        raise OutputError(
            "the merged tokenizer puts other special tokens around a text than planned. Nothing was written."
        )
    backend = unbounded(loaded.backend_tokenizer)
    for parent in parents:
        if broken := broken_words(parent, unbounded(load(parent.folder).backend_tokenizer), backend, planned):
            raise OutputError(f"the merged tokenizer does not read as its parents: {broken[0]}. Nothing was written.")


def _check_kinds(tokenizers: Sequence[Tokenizer], sources: Sequence[str]) -> None:
    first = tokenizers[0]
    for tokenizer, source in zip(tokenizers[1:], sources[1:], strict=True):
        if tokenizer.kind != first.kind:
            raise MismatchError(
                f"no union of tokenizers: {sources[0]} has a {first.kind}, {source} a {tokenizer.kind}. "
                "Tokens of two kinds do not mean the same."
            )
        if first.kind == "Unigram" and tokenizer.stored["model"]["vocab"] != first.stored["model"]["vocab"]:
            raise MismatchError(
                f"no union of tokenizers: the pieces or scores of the Unigrams of {sources[0]} and {source} differ, and "
                f"scores of two trainings are not comparable. {INSTEAD}"
            )


def _check_as_loaded(tokenizers: Sequence[Tokenizer], sources: Sequence[str]) -> tuple[str, ...]:
    """Check tokens, settings and roles as transformers loads them; return special tokens that only later models list.

    The settings of tokenizer.json are not enough: some classes build their own from tokenizer_config.json (do_lower_case).
    """
    settings, extra = [], []
    for tokenizer, source in zip(tokenizers, sources, strict=True):
        loaded = load(tokenizer.folder)
        record = loaded_tokenizer(loaded, tokenizer.folder)
        if record.tokens != tokenizer.tokens:
            odd = min(t for t, _ in record.tokens.items() ^ tokenizer.tokens.items())
            raise MismatchError(
                f"{source}: {odd!r} is {tokenizer.tokens.get(odd)} in its tokenizer's files, but transformers reads "
                f"{record.tokens.get(odd)}. Save the tokenizer again before it is united with others."
            )
        roles = {role: str(token) for role, token in loaded.special_tokens_map.items() if isinstance(token, str)}
        settings.append(record.settings | roles)
        extra.append([str(token) for token in loaded.extra_special_tokens])
    for source, other in zip(sources[1:], settings[1:], strict=True):
        if differences := setting_differences(settings[0], other, sources[0], source):
            shown = some(list(differences.values()), separator="; ")
            raise MismatchError(f"no union of tokenizers: {shown}. {INSTEAD}")
    return tuple(dict.fromkeys(token for tokens in extra[1:] for token in tokens if token not in extra[0]))


def _united_added(tokenizers: Sequence[Tokenizer], sources: Sequence[str]) -> dict[str, dict[str, bool]]:
    """Return content -> flags of all added tokens, the first model's first, each in the order of its ids."""
    flags: dict[str, tuple[dict[str, bool], str]] = {}
    for tokenizer, source in zip(tokenizers, sources, strict=True):
        for content, token in sorted(tokenizer.added.items(), key=lambda item: item[1]["id"]):
            its_flags = {flag: token[flag] for flag in FLAGS}
            first_flags, first_source = flags.setdefault(content, (its_flags, source))
            for flag in FLAGS:
                if first_flags[flag] != its_flags[flag]:
                    raise MismatchError(
                        f"no union of tokenizers: the added token {content!r} has {flag} {first_flags[flag]} in {first_source}, "
                        f"{its_flags[flag]} in {source}. {INSTEAD}"
                    )
    for tokenizer, source in zip(tokenizers, sources, strict=True):
        for content, (first_flags, first_source) in flags.items():
            if content in tokenizer.vocab and content not in tokenizer.added:
                word = "a special" if first_flags["special"] else "an added"
                raise MismatchError(
                    f"no union of tokenizers: {content!r} is {word} token in {first_source} and an ordinary one in {source}. "
                    f"{INSTEAD}"
                )
    return {content: first_flags for content, (first_flags, _) in flags.items()}


def _check_gapless(tokenizer: Tokenizer, source: str) -> None:
    """Stop where ids leave gaps: the tokenizers library would give the added tokens of a union other ids than planned."""
    for name, ids in (("vocabulary", tokenizer.vocab), ("tokens", tokenizer.tokens)):
        if gaps := set(range(len(ids))) - set(ids.values()):
            raise MismatchError(
                f"no union of tokenizers: the {name} of {source} leaves out the id {min(gaps)}; ids must be 0, 1, 2, ... "
                f"{INSTEAD}"
            )


def _united_vocab(tokenizers: Sequence[Tokenizer]) -> dict[str, int]:
    vocab = dict(tokenizers[0].vocab)
    for tokenizer in tokenizers[1:]:
        for token in sorted(tokenizer.vocab, key=tokenizer.vocab.__getitem__):
            if token not in tokenizers[0].added:  # there it is cut out of the text before the model reads it
                vocab.setdefault(token, len(vocab))
    return vocab


def _united_merges(
    tokenizers: Sequence[Tokenizer], sources: Sequence[str], vocab: Mapping[str, int]
) -> list[list[str]]:
    model = tokenizers[0].stored["model"]
    merges = dict.fromkeys(pair for tokenizer in tokenizers for pair in tokenizer.merges)
    for pair in merges:
        if missing := {*pair, product(model, pair)} - vocab.keys():
            raise MismatchError(
                f"no union of tokenizers: the merge of {pair[0]!r} and {pair[1]!r} needs {min(missing)!r}, which is "
                f"an added token in {sources[0]}. {INSTEAD}"
            )
    return [list(pair) for pair in merges]


def with_ids(part: Any, tokens: Mapping[str, int]) -> Any:
    """Return a post-processor with the ids of its special tokens in the union."""
    if isinstance(part, list):
        return [with_ids(p, tokens) for p in part]
    if not isinstance(part, Mapping):
        return part
    out = {key: with_ids(value, tokens) for key, value in part.items()}
    for key in ("cls", "sep"):
        if isinstance(part.get(key), list):
            out[key] = [part[key][0], tokens[part[key][0]]]
    if "ids" in part and "tokens" in part:
        out["ids"] = [tokens[token] for token in part["tokens"]]
    return out


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
