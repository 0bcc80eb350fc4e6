"""How linear each component of a model is: the best linear map from what it reads to what it writes, on text.

Components of a layer, with x the states before it, m the stream between its sublayers and y the states after it:

    attention        x -> what attention adds to the stream      attention + skip   x -> m
    ffn              m -> what the feed-forward part adds        ffn + skip         m -> y
    layer            x -> y

Of the map f, on texts that it was not fitted on, over tokens that are not padding:

    non-linearity    1 - cos(f(x), y), mean over tokens
    R2               share of the variance of y that f explains
    error norm       |f(x) - y| / |y|, mean over tokens

Without skill are the mean of y, whatever the token, and for components with a skip connection the states that it carries.

Closed form: the affine map of least squares, from normal equations that are summed batch by batch. Published training: Adam with
rate 1e-3, three rounds through the text, loss 1 - cosine, mean squared error, or length of the error.

Source: Zhao et al. 2021, arXiv:2101.04547, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from evals.surgery.measure import on_device
from evals.surgery.slots import SlottedModel
from evals.surgery.sublayers import Watched
from merge.checkpoints.hooks import token_mask, token_rows
from merge.errors import CalibrationError
from merge.layers.activations import split_batches
from merge.layers.repair.ridge import NO_VARIANCE, NormalEquations
from merge.progress import track

if TYPE_CHECKING:
    from merge.checkpoints.inputs import Batch

# Component -> the stream that it reads, and what it writes of what was watched.
COMPONENTS: dict[str, tuple[str, str]] = {
    "attention": ("before", "attention"),
    "attention + skip": ("before", "middle"),
    "ffn": ("middle", "ffn"),
    "ffn + skip": ("middle", "after"),
    "layer": ("before", "after"),
}
SKIPPING = ("attention + skip", "ffn + skip", "layer")
# Relative to the mean square of a unit: only against a singular system.
RIDGE = 1e-9
HELD_OUT = 0.2
LOSSES = ("cosine", "mse", "l2")
RATE, ROUNDS = 1e-3, 3

Key = tuple[int, str]  # layer, component


@dataclass(frozen=True)
class Linear:
    """A map of rows: x @ weight + bias."""

    weight: Float[Tensor, "inputs outputs"]
    bias: Float[Tensor, " outputs"]

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.weight.to(x) + self.bias.to(x)


@dataclass(frozen=True)
class Linearity:
    """How well a map gives what a component writes, on held-out tokens.

    Attributes:
        nonlinearity, r2, error_norm: as the module says.
        of_mean, of_skip: the non-linearity of the mean output, and of the input; the latter none without a skip connection.
        size: |written| over |read|, mean over tokens.
    """

    nonlinearity: float
    r2: float
    error_norm: float
    of_mean: float
    of_skip: float | None
    size: float


@dataclass(frozen=True)
class Fits:
    """The maps of all components.

    Attributes:
        maps: by layer and component.
        linearity: of each map, on held-out tokens.
        tokens, held_out: of the fit, and those that judge it.
    """

    maps: dict[Key, Linear]
    linearity: dict[Key, Linearity]
    tokens: int
    held_out: int


def fit_components(
    model: SlottedModel, batches: Sequence[Batch], loss: str | None = None, rounds: int = ROUNDS, seed: int = 0
) -> Fits:
    """Return the best linear map of every component, fitted on four texts of five and judged on the fifth.

    Args:
        loss: of the published training; the closed form when None.
        rounds: of the training through the text.
    Raises:
        CalibrationError: the text has too few tokens for a closed form.
    """
    fitting, judging = (
        [b for b, held in split_batches(tuple(batches), HELD_OUT) if held is flag] for flag in (False, True)
    )
    if not judging:
        raise CalibrationError(
            f"{_texts(fitting)} texts leave none to judge a fit by: a fifth of them is held out. Give at least 5, and "
            "more tokens than the model has units."
        )
    if loss is None:
        maps, means, tokens = _closed_form(model, fitting)
    else:
        maps, means, tokens = _trained(model, fitting, loss, rounds, seed)
    measured, held = _judge(model, judging, maps, means)
    return Fits(maps, measured, tokens, held)


def _texts(batches: Sequence[Batch]) -> int:
    return sum(len(batch["attention_mask"]) for batch in batches)


def streams(model: SlottedModel, batches: Sequence[Batch], label: str) -> Iterator[list[Watched]]:
    """Yield, for each batch, what the sublayers of every layer read and wrote, as rows of tokens that are not padding."""
    for batch in track(list(batches), label):
        with torch.inference_mode():
            seen = model.whole(on_device(batch, model), watch=True).seen
            rows = [_rows(each, batch, model.live.order) for each in seen]
        yield rows  # outside: a suspended block would hand its mode on to the caller


def _rows(seen: Watched, batch: Batch, order: str) -> Watched:
    return Watched(**{name: token_rows(value, token_mask(batch), order).cpu() for name, value in vars(seen).items()})


def _closed_form(model: SlottedModel, batches: Sequence[Batch]) -> tuple[dict[Key, Linear], dict[Key, Tensor], int]:
    """Return map and mean output of every component; components that read one stream share its normal equations."""
    sums: dict[tuple[int, str], NormalEquations] = {}
    targets = {read: [c for c, (source, _) in COMPONENTS.items() if source == read] for read in ("before", "middle")}
    tokens, width = 0, 0
    for seen in streams(model, batches, "fitting linear maps"):
        tokens, width = tokens + len(seen[0].before), seen[0].before.shape[1]
        for layer, each in enumerate(seen):
            for read, components in targets.items():
                x = getattr(each, read).double()
                y = torch.cat([getattr(each, COMPONENTS[c][1]) for c in components], 1).double()
                sums.setdefault((layer, read), NormalEquations(width, width * len(components))).add(x, y)
    check_tokens(tokens, width, _texts(batches))
    maps, means = {}, {}
    for (layer, read), equations in sums.items():
        solved = equations.solve(torch.zeros_like(equations.xy), RIDGE)
        for at, component in enumerate(targets[read]):
            columns = slice(at * width, (at + 1) * width)
            maps[layer, component] = Linear(solved[:-1, columns].float(), solved[-1, columns].float())
            means[layer, component] = (equations.y[columns] / tokens).float()
    return maps, means, tokens


def check_tokens(tokens: int, width: int, texts: int) -> None:
    """Stop where a closed form has fewer tokens than unknowns of an output.

    Raises:
        CalibrationError: says how much text is needed.
    """
    if tokens > width:
        return
    least, better = (-(-times * (width + 1) * texts * 5 // (4 * max(tokens, 1))) for times in (1, 10))
    raise CalibrationError(
        f"the closed-form fit needs more than {width:,} tokens, one for each unit of a state and one more, and the {texts:,} "
        f"texts of the fit have {tokens:,}. Give at least {least:,} texts like these, a fifth of which is held out, better "
        f"{better:,}: a longer --text, or more --samples."
    )


def _trained(
    model: SlottedModel, batches: Sequence[Batch], loss: str, rounds: int, seed: int
) -> tuple[dict[Key, Linear], dict[Key, Tensor], int]:
    """Return maps by the published training: Adam on one batch at a time, all components of all layers together."""
    generator = torch.Generator().manual_seed(seed)
    weights: dict[Key, tuple[Tensor, Tensor]] = {}
    sums: dict[Key, Tensor] = {}
    optimizer: torch.optim.Adam | None = None
    tokens = 0
    for number in range(rounds):
        for seen in streams(model, batches, f"training linear maps, round {number + 1} of {rounds}"):
            if optimizer is None:
                width = seen[0].before.shape[1]
                weights = {(layer, c): _drawn(width, generator) for layer in range(len(seen)) for c in COMPONENTS}
                optimizer = torch.optim.Adam([p for pair in weights.values() for p in pair], lr=RATE)
            total = torch.zeros(())
            for layer, each in enumerate(seen):
                for component, (read, written) in COMPONENTS.items():
                    x, y = getattr(each, read).clone(), getattr(each, written).clone()
                    weight, bias = weights[layer, component]
                    total = total + LOSS[loss](x @ weight + bias, y)
                    if number == 0:
                        sums[layer, component] = sums.get((layer, component), 0) + y.sum(0)
            tokens += len(seen[0].before) if number == 0 else 0
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
    maps = {key: Linear(weight.detach(), bias.detach()) for key, (weight, bias) in weights.items()}
    return maps, {key: total / tokens for key, total in sums.items()}, tokens


def _drawn(width: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the weight and bias that a dense layer of the published code starts from: Glorot's uniform, and zero."""
    weight = torch.nn.init.xavier_uniform_(torch.empty(width, width), generator=generator)
    return weight.requires_grad_(), torch.zeros(width, requires_grad=True)


LOSS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": lambda given, due: (1 - torch.cosine_similarity(given, due, dim=1)).mean(),
    "mse": lambda given, due: (given - due).square().mean(),
    "l2": lambda given, due: (given - due).norm(dim=1).mean(),
}


class _Sums:
    """The sums over held-out tokens that the measures of one component are made of."""

    def __init__(self, width: int) -> None:
        self.tokens = 0
        self.y = torch.zeros(width, dtype=torch.float64)
        self.yy = self.error = 0.0
        self.means = torch.zeros(5, dtype=torch.float64)

    def add(self, x: Tensor, y: Tensor, given: Tensor, mean: Tensor) -> None:
        x, y, given, mean = (value.double() for value in (x, y, given, mean))
        gap = given - y
        self.tokens += len(y)
        self.y += y.sum(0)
        self.yy += float(y.square().sum())
        self.error += float(gap.square().sum())
        lengths = y.norm(dim=1)
        columns = (
            _cosine_gap(given, y),
            gap.norm(dim=1) / lengths.clamp(min=1e-12),
            _cosine_gap(mean.expand_as(y), y),
            _cosine_gap(x, y),
            lengths / x.norm(dim=1).clamp(min=1e-12),
        )
        self.means += torch.stack([column.sum() for column in columns])

    def linearity(self, skipping: bool) -> Linearity:
        gap, error, of_mean, of_skip, size = (self.means / self.tokens).tolist()
        variance = self.yy - float((self.y.square() / self.tokens).sum())
        r2 = 1 - self.error / variance if variance > NO_VARIANCE * self.yy else float(self.error == 0)
        return Linearity(gap, r2, error, of_mean, of_skip if skipping else None, size)


def _cosine_gap(a: Tensor, b: Tensor) -> Tensor:
    """Return 1 - cosine of rows; 0 where both are zero, which points nowhere."""
    both = (a.norm(dim=1) == 0) & (b.norm(dim=1) == 0)
    return (1 - torch.cosine_similarity(a, b, dim=1)).masked_fill(both, 0.0)


def _judge(
    model: SlottedModel, batches: Sequence[Batch], maps: dict[Key, Linear], means: dict[Key, Tensor]
) -> tuple[dict[Key, Linearity], int]:
    sums: dict[Key, _Sums] = {}
    for seen in streams(model, batches, "judging linear maps"):
        for layer, each in enumerate(seen):
            for component, (read, written) in COMPONENTS.items():
                x, y = getattr(each, read), getattr(each, written)
                key = layer, component
                sums.setdefault(key, _Sums(y.shape[1])).add(x, y, maps[key](x), means[key])
    measured = {key: each.linearity(key[1] in SKIPPING) for key, each in sums.items()}
    return measured, next(iter(sums.values())).tokens


def linearity_json(fits: Fits) -> list[dict[str, Any]]:
    """Return the measures of every component for a record."""
    return [{"layer": layer, "component": name, **vars(each)} for (layer, name), each in fits.linearity.items()]
