"""Search the weights of a greedy soup: candidates are written, scored by a command, and their scores cached."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.open import open_encoder
from merge.disk.cache import cache_key, read_cached, write_cached
from merge.disk.documents import parse_json
from merge.disk.hashes import remembered_hash
from merge.disk.staging import MARKER
from merge.errors import MergeError, closest
from merge.methods import make_method
from merge.methods.greedy_soup import MODEL, GreedySoup
from merge.progress import track
from merge.publish.results_file import read_results
from merge.recipe.recipe import Recipe
from merge.run.search.soup_ranking import RankingError, ranked_soup

Write = Callable[[Recipe, Path], None]

FORMAT = 1  # of the cached scores


class ScoreError(MergeError):
    """A model could not be scored: the scorer failed, or printed no number."""


def greedy_soup(recipe: Recipe, models: Sequence[Checkpoint], write: Write) -> tuple[Recipe, tuple[str, ...]]:
    """Return the recipe with the weights of the best soup, and a note on every score; any other recipe unchanged.

    Models are tried from the best to the worst, equal ones in the order of the recipe; a model joins the soup if the plain
    average with it scores no lower than without. The first soup is the best model itself; where overrides, slices or another
    vocabulary make an average of one model another model, that is scored too.

    Args:
        write: writes the merge of a recipe into an empty folder.
    Raises:
        ScoreError: the scorer failed or printed no number, or the file of results has no such scores.
        RankingError: without a scorer, the file of results ranks no average of these models.
    Source: Wortsman et al. 2022, arXiv:2203.05482, Recipe 1.
    """
    if recipe.method != "greedy_soup":
        return recipe, ()
    if recipe.settings.get("weights") is not None or recipe.models[0].weight is not None:
        return recipe, ("greedy_soup: weights are given, so nothing was scored",)
    method = make_method(recipe.method, recipe.settings, [None] * len(models))
    assert isinstance(method, GreedySoup)
    if method.scorer is None:
        return _from_ranking(recipe, str(method.results), models)
    names, sign = [c.source for c in models], -1.0 if method.lower_is_better else 1.0
    scores, notes = _single_scores(method, models)
    order = sorted(range(len(models)), key=lambda k: (-sign * scores[k], k))
    plain = not (recipe.overrides or recipe.slices or recipe.tokenizer)
    soup: list[int] = []
    best = -math.inf
    with _scratch(Path(recipe.output).expanduser()) as scratch:
        for k in track(order, "greedy soup"):
            tried = sorted([*soup, k])
            members = " + ".join(names[m] for m in tried)
            alone = not soup and plain
            score = scores[k] if alone else _score_of_soup(method, recipe, tried, write, scratch)
            joins = sign * score >= best
            if not alone:
                notes.append(f"greedy_soup: {members} scores {score}: {names[k]} {'joins' if joins else 'is left out'}")
            if joins:
                soup, best = tried, sign * score
    notes.append(f"greedy_soup: the soup is {' + '.join(names[m] for m in soup)}, with a score of {sign * best}")
    weights = [1.0 if k in soup else 0.0 for k in range(len(models))]
    return recipe.model_copy(update={"settings": {**recipe.settings, "weights": weights}}), tuple(notes)


def _from_ranking(recipe: Recipe, results: str, models: Sequence[Checkpoint]) -> tuple[Recipe, tuple[str, ...]]:
    """Return the recipe with the weights of the best ranked average, and where it is from."""
    changed = [name for name in ("overrides", "slices", "tokenizer") if getattr(recipe, name)]
    if changed:
        raise RankingError(f"{results} ranks plain averages, and this recipe has {', '.join(changed)}. Give a scorer.")
    soup = ranked_soup(Path(results).expanduser(), models, recipe.align.moves)
    return recipe.model_copy(update={"settings": {**recipe.settings, "weights": list(soup.weights)}}), (soup.note,)


def _single_scores(method: GreedySoup, models: Sequence[Checkpoint]) -> tuple[list[float], list[str]]:
    """Return the score of every model alone, from the file of results where it has one, and notes on them."""
    stored = {} if method.results is None else stored_scores(Path(method.results), str(method.metric), models)
    scores, notes = [], []
    for k, model in enumerate(track(models, "scoring models")):
        score = stored[k] if k in stored else cached_score(method, model, model.source)
        scores.append(score)
        origin = f" (from {method.results})" if k in stored else ""
        notes.append(f"greedy_soup: {model.source} scores {score}{origin}")
    return scores, notes


def _score_of_soup(method: GreedySoup, recipe: Recipe, members: Sequence[int], write: Write, scratch: Path) -> float:
    """Return the score of the plain average of some models, which is written and removed again."""
    weights = [1.0 if k in members else 0.0 for k in range(len(recipe.models))]
    folder = scratch / "soup"
    folder.mkdir()
    write(recipe.model_copy(update={"method": "linear", "settings": {"weights": weights}}), folder)
    names = " + ".join(recipe.models[k].model for k in members)
    score = cached_score(method, open_encoder(str(folder)), names)
    shutil.rmtree(folder)
    return score


@contextlib.contextmanager
def _scratch(output: Path) -> Iterator[Path]:
    """Yield a folder beside the output for candidates; it is removed at the end, also on Ctrl-C.

    Should this run be killed, the next run with the same output removes the folder, by its name.
    """
    target = output.resolve()
    new_parents = [folder for folder in target.parents if not folder.exists()]
    scratch = target.parent / f".{target.name}.{MARKER}-candidates-{os.getpid()}"
    shutil.rmtree(scratch, ignore_errors=True)  # of an earlier process with our number, as in containers
    try:
        try:
            scratch.mkdir(parents=True)
        except OSError as error:
            raise ScoreError(f"candidates cannot be written beside {output}: {error.strerror or error}.") from error
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        for folder in new_parents:
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()


def cached_score(method: GreedySoup, model: Checkpoint, name: str) -> float:
    """Return a model's score, from the cache if this scorer has scored this content before.

    The cache key: the model's weights, config and tokenizer, the words of the scorer's command, the content of files that
    these name, and the metric.

    Args:
        name: of the model, for messages.
    """
    words = method.words()
    files = [remembered_hash(Path(word)) if MODEL not in word and _is_file(word) else None for word in words]
    key = cache_key(FORMAT, model.content_hash, words, files, method.metric)
    cached = read_cached("scores", key)
    if isinstance(cached, float) and math.isfinite(cached):
        return cached
    score = run_scorer(words, model.folder.absolute(), method.metric, name)
    write_cached("scores", key, score)
    return score


def _is_file(word: str) -> bool:
    try:
        return Path(word).is_file()
    except (OSError, ValueError):
        return False


def run_scorer(words: Sequence[str], folder: Path, metric: str | None, name: str) -> float:
    """Run the scorer on a model's folder and return the score it prints.

    Raises:
        ScoreError: it cannot be run, fails, or prints no finite number.
    """
    command = [word.replace(MODEL, str(folder)) for word in words]
    # A command installed beside this Python runs although its environment is not activated.
    beside = shutil.which(command[0], path=str(Path(sys.executable).parent))
    command[0] = shutil.which(command[0]) or beside or command[0]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise ScoreError(
            f"scorer {words[0]!r} cannot be run: {error.strerror or error}. Its first word must be a command."
        ) from error
    if done.returncode != 0:
        raise ScoreError(f"the scorer failed on {name} (exit {done.returncode}): {last_words(done.stderr)}")
    try:
        score = score_in(done.stdout, metric)
    except ScoreError as error:
        raise ScoreError(f"the scorer printed no score of {name}: {error} stderr: {last_words(done.stderr)}") from error
    if not math.isfinite(score):
        raise ScoreError(f"the scorer printed {score} for {name}; expected a finite number.")
    return score


def last_words(text: str) -> str:
    """Return the end of a command's output, on one line."""
    line = " ".join(text.split())
    return (line if len(line) <= 300 else "..." + line[-297:]) or "(nothing)"


def score_in(stdout: str, metric: str | None) -> float:
    """Return the score in a scorer's output: its last line if that is a number, else the metric in its JSON.

    Raises:
        ScoreError: the output has no score, or several.
    """
    lines = [line for line in stdout.splitlines() if line.strip()]
    with contextlib.suppress(ValueError, IndexError):
        return float(lines[-1])
    try:
        document = parse_json(stdout, "stdout", ScoreError)
    except ScoreError as error:
        printed = f"its last line is {lines[-1].strip()[:80]!r}" if lines else "it printed nothing"
        raise ScoreError(f"expected a number in the last line of stdout, or JSON; {printed}.") from error
    if metric is None:
        raise ScoreError("it printed JSON; set metric to the key of the score.")
    return _value_at(document, metric)


@dataclass(frozen=True)
class _Leaf:
    path: str
    value: float


def _value_at(document: Any, metric: str) -> float:
    """Return the only number whose dotted path is, or ends with, the metric; task/score in records of evaluate-models."""
    leaves = list(_leaves(document, ""))
    matches = [leaf for leaf in leaves if leaf.path == metric]
    matches = matches or [leaf for leaf in leaves if leaf.path.endswith(f".{metric}")]
    if len(matches) == 1:
        return matches[0].value
    if not matches:
        raise ScoreError(f"its JSON holds no number {metric!r}.{closest(metric, [leaf.path for leaf in leaves])}")
    shown = ", ".join(leaf.path for leaf in matches[:4])
    raise ScoreError(f"its JSON holds {len(matches)} numbers {metric!r}: {shown}. Give more of the path.")


def _leaves(value: Any, path: str) -> Iterator[_Leaf]:
    """Yield every number of a JSON document; those of a scores record once more, as task/score."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield from _leaves(child, f"{path}.{key}" if path else str(key))
        if isinstance(value.get("task"), str) and isinstance(value.get("scores"), dict):
            for name, score in value["scores"].items():
                yield from _leaves(score, f"{value['task']}/{name}")
    elif isinstance(value, list):
        for k, child in enumerate(value):
            yield from _leaves(child, f"{path}.{k}" if path else str(k))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield _Leaf(path, float(value))


def stored_scores(path: Path, metric: str, models: Sequence[Checkpoint]) -> dict[int, float]:
    """Return number of a model -> its score in a results.json of evaluate-models; a model is identified by its content.

    Raises:
        ScoreError: the file cannot be read, holds two such scores of a model, or scores on different rows.
    """
    task, _, name = metric.rpartition("/")
    by_model: dict[int, float] = {}
    rows: set[tuple[Any, ...]] = set()
    records = read_results(path.expanduser(), ScoreError)
    scores = [record for record in records if record["kind"] == "scores" and record["task"] == task]
    for k, model in enumerate(models):
        of_model = [record for record in scores if record["model"].get("hash") == model.content_hash]
        if len(of_model) > 1:
            rows_of = "; ".join(f"{record['data']} ({record['n']} rows)" for record in of_model)
            raise ScoreError(f"{path} holds {len(of_model)} scores of {model.source} on {task}: {rows_of}. Keep one.")
        for record in of_model:
            if record["scores"].get(name) is None:
                advice = closest(name, record["scores"])
                raise ScoreError(f"{path}: {model.source} has no number {name!r} on {task}.{advice}")
            by_model[k] = float(record["scores"][name])
            rows.add((record["split"], record["data"], record["n"]))
    if len(rows) > 1:
        listed = "; ".join(f"{data} ({n} rows)" for _, data, n in sorted(rows, key=str))
        raise ScoreError(
            f"{path} holds {metric} of these models on different rows: {listed}. Evaluate them on one set."
        )
    return by_model
