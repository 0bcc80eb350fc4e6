"""The text form of a layer plan: the layers of the output in order, separated by commas.

A[0-3]               layers 0 to 3 of model A; A[3-0] in descending order, A[5,7] those two, A3 or A[3] one
A[3]*2               twice, one after the other
mean(A1, A2)         one layer, the mean of several; mean(0.7*A1, 0.3*B1) with weights
laco(A[2-4])         one layer, layers 3 and 4 collapsed into layer 2 (LaCo)
zero(A[3])           a copy whose output projections are zero (LLaMA Pro)
A[3]-attention       a copy without its attention; A[3]-ffn, A[3]-cross; A[3]-ffn-norm without the norm after it too
merge(A[0-3], B[0-3])  in a recipe of merge-models: layer i of each, merged by its method
affine(A2->A5)       one fitted layer in place of layers 2 to 4: from the state that layer 2 reads to the one layer 5 reads
affine(A3->B4)       the same between two models: from what layer 3 of A reads to what layer 4 of B reads
"""

from __future__ import annotations

from collections.abc import Sequence

from merge.errors import UsageError
from merge.layers.plans.making import NORM, SUBLAYERS, Making
from merge.layers.plans.plan import LayerPlan
from merge.layers.plans.tokens import PlanSyntaxError, Token, shown, split_tokens

FUNCTIONS = ("mean", "laco", "zero", "affine")
MOST_LAYERS = 10_000  # of a plan
MOST_DIGITS = 6

Source = tuple[int, int]


def model_letter(number: int) -> str:
    """Return the name of a model in a plan's text where the user gave none: A, B, ..., Z, AA."""
    first, last = divmod(number, 26)
    return (model_letter(first - 1) if first else "") + chr(ord("A") + last)


def parse_plan(
    text: str,
    models: Sequence[str],
    stack: str = "",
    functions: Sequence[str] = (*FUNCTIONS, *SUBLAYERS),
    totals: Sequence[int] = (),
) -> LayerPlan:
    """Return the plan of a text.

    Args:
        models: the names that the text gives the models, in their order; of one model, layers need no name.
        functions: what the plan may hold beside copies; "merge" merges layer i of each source by the method of a recipe.
        totals: how many layers each model has; without them no number is too large.
    Raises:
        UsageError: the text is no plan; the message shows the place.
    """
    return _Parser(text, models, stack, functions, totals).plan()


class _Parser:
    """Reads a plan from left to right; one token is looked ahead."""

    def __init__(
        self, text: str, models: Sequence[str], stack: str, functions: Sequence[str], totals: Sequence[int]
    ) -> None:
        self._text, self._models, self._stack, self._functions = text, list(models), stack, functions
        self._totals = list(totals)
        self._tokens = split_tokens(text)
        self._next = 0

    def plan(self) -> LayerPlan:
        layers: list[tuple[Source, ...]] = []
        makings: list[Making | None] = []
        if self._peek.kind == "word" and self._peek.text == "none" and self._tokens[1].kind == "end":
            return LayerPlan.none(self._stack)
        while True:
            position = self._peek.position
            for making, sources in self._item():
                if len(layers) >= MOST_LAYERS:
                    raise self._fault(f"a plan has at most {MOST_LAYERS} layers", position)
                layers.append(sources)
                makings.append(making)
            if self._peek.kind == "end":
                return LayerPlan(tuple(layers), self._stack, tuple(makings) if any(makings) else ())
            self._expect(",", "a comma between layers, or the end")

    @property
    def _peek(self) -> Token:
        return self._tokens[self._next]

    def _take(self) -> Token:
        token = self._tokens[self._next]
        self._next += token.kind != "end"
        return token

    def _fault(self, message: str, position: int) -> PlanSyntaxError:
        return PlanSyntaxError(self._text, position, message)

    def _expect(self, text: str, wanted: str) -> None:
        token = self._take()
        if token.text != text:
            raise self._fault(f"expected {wanted}, found {shown(token)}", token.position)

    def _item(self) -> list[tuple[Making | None, tuple[Source, ...]]]:
        """Return the output layers of one item of the plan, repeated where `*n` follows."""
        token = self._peek
        calls = token.kind == "word" and self._tokens[self._next + 1].text == "("
        made: list[tuple[Making | None, tuple[Source, ...]]]
        made = self._call() if calls else [(None, (source,)) for source in self._layers()]
        if self._removes:
            if calls:
                raise self._fault("only copies of layers lose a sublayer", self._peek.position)
            position = self._peek.position
            making = Making("without", without=self._without())
            if not set(making.without) <= {*self._functions, NORM}:
                raise self._fault("layers are merged here as they are; edit-layers apply takes sublayers out", position)
            made = [(making, sources) for _, sources in made]
        if self._peek.text == "*":
            self._take()
            position = self._peek.position
            times = self._number("how often the layers are repeated")
            if not 0 < times * len(made) <= MOST_LAYERS:
                raise self._fault(f"expected 1 to {MOST_LAYERS} layers by repetition", position)
            made = made * times
        return made

    @property
    def _removes(self) -> bool:
        """Whether a minus and a word follow, as in `A[3]-ffn`; in `A3-5` a number follows."""
        return self._peek.text == "-" and self._tokens[self._next + 1].kind in ("word", "end")

    def _without(self) -> tuple[str, ...]:
        """Return the sublayers of `-attention-ffn`, and the norm of `-ffn-norm`."""
        first, named = self._peek.position, set[str]()
        while self._removes:
            self._take()
            token = self._take()
            if token.text not in (*SUBLAYERS, NORM) or token.text in named:
                given = f"{token.text!r} twice" if token.text in named else shown(token)
                raise self._fault(
                    f"expected a sublayer ({', '.join((*SUBLAYERS, NORM))}), found {given}", token.position
                )
            named.add(token.text)
        if named == {NORM}:
            raise self._fault("a norm is removed with the sublayer before it, as in A[3]-ffn-norm", first)
        return tuple(name for name in (*SUBLAYERS, NORM) if name in named)

    def _call(self) -> list[tuple[Making | None, tuple[Source, ...]]]:
        name = self._take()
        if name.text not in self._functions:
            other = "edit-layers apply" if name.text in FUNCTIONS else "a recipe of merge-models"
            known = name.text in (*FUNCTIONS, "merge")
            listed = ", ".join(f"{each}(...)" for each in self._functions if each not in SUBLAYERS)
            raise self._fault(
                f"{name.text}(...) {f'belongs to {other}' if known else 'is not known'}; here are {listed}",
                name.position,
            )
        self._take()
        made: list[tuple[Making | None, tuple[Source, ...]]]
        if name.text == "affine":
            made = [self._affine()]
        elif name.text == "merge":
            made = [(None, sources) for sources in self._columns(name.position)]
        else:
            weights, sources = self._terms(weighed=name.text == "mean")
            if name.text == "zero":
                made = [(Making("zero"), (source,)) for source in sources]
            else:
                made = [(Making(name.text, weights), tuple(sources))]  # type: ignore[arg-type]
        self._expect(")", "a closing parenthesis")
        for making, chosen in made:
            try:
                if making is not None:
                    making.check(chosen)
            except UsageError as error:
                raise self._fault(str(error), name.position) from None
        return made

    def _columns(self, start: int) -> list[tuple[Source, ...]]:
        """Return layer i of every argument of merge(...)."""
        slices = [self._layers()]
        while self._peek.text == ",":
            self._take()
            slices.append(self._layers())
        if len({len(chosen) for chosen in slices}) > 1:
            counts = " and ".join(str(len(chosen)) for chosen in slices)
            raise self._fault(f"merge(...) merges equally many layers of each source, found {counts}", start)
        return list(zip(*slices, strict=True))

    def _affine(self) -> tuple[Making, tuple[Source, ...]]:
        first = self._peek.position
        (model, start), (other, end) = self._state(), self._state(after="->")
        if model != other:
            return Making("affine", states=(start, end), reads=model), ((other, max(end - 1, 0)),)
        if end <= start:
            raise self._fault(
                "affine(A2->A5) goes from a state of a model to a later state of it, or to a state of another model",
                first,
            )
        return Making("affine", states=(start, end)), ((model, end - 1),)

    def _state(self, after: str = "") -> Source:
        if after:
            self._expect(after, "an arrow ->")
        model, position = self._model(), self._peek.position
        return model, self._below(model, self._number("the number of a state"), position, "state")

    def _terms(self, weighed: bool) -> tuple[tuple[float, ...], list[Source]]:
        """Return the weights (none where none is given) and the sources inside parentheses."""
        weights: list[float] = []
        sources: list[Source] = []
        while True:
            token = self._peek
            weight = 1.0
            stated = token.kind == "number" and self._tokens[self._next + 1].text == "*"
            if stated:
                if not weighed:
                    raise self._fault("only mean(...) takes weights", token.position)
                weight = float(self._take().text)
                self._take()
            chosen = self._layers()
            if stated != bool(weights) and sources:
                raise self._fault("either every layer of a mean has a weight, or none", token.position)
            weights += [weight] * len(chosen) if stated else []
            sources += chosen
            if self._peek.text != ",":
                return tuple(weights), sources
            self._take()

    def _layers(self) -> list[Source]:
        """Return the layers of `A[0-3,5]`, `A[2]`, `A2`, or of `0-3` where there is one model."""
        model = self._model()
        if self._peek.text != "[":
            return [(model, layer) for layer in self._range(model)]
        self._take()
        layers = self._range(model)
        while self._peek.text == ",":
            self._take()
            layers += self._range(model)
        self._expect("]", "a comma or a closing bracket ]")
        return [(model, layer) for layer in layers]

    def _model(self) -> int:
        token = self._peek
        if token.kind != "word":
            if len(self._models) == 1 and token.kind == "number":
                return 0
            raise self._fault(f"expected a model ({', '.join(self._models)}), found {shown(token)}", token.position)
        self._take()
        if token.text not in self._models:
            raise self._fault(
                f"there is no model {token.text!r}; the models are {', '.join(self._models)}", token.position
            )
        return self._models.index(token.text)

    def _range(self, model: int) -> list[int]:
        position = self._peek.position
        start = self._below(model, self._number("the number of a layer"), position, "layer")
        if self._peek.text != "-" or self._removes:
            return [start]
        self._take()
        last = self._peek.position
        end = self._below(model, self._number("the last layer of a range"), last, "layer")
        if abs(end - start) >= MOST_LAYERS:
            raise self._fault(f"a range has at most {MOST_LAYERS} layers", position)
        return list(range(start, end + 1)) if start <= end else list(range(start, end - 1, -1))

    def _below(self, model: int, number: int, position: int, what: str) -> int:
        """Return a number that the model has a layer or state of, where the numbers of layers are known."""
        if self._totals and number >= (total := self._totals[model] + (what == "state")):
            name = self._models[model]
            known = f"{what}s 0 to {total - 1}" if total else "no layers"
            raise self._fault(f"there is no {what} {number} of {name}, which has {known}", position)
        return number

    def _number(self, wanted: str) -> int:
        token = self._take()
        if token.kind != "number" or not token.text.isdecimal() or len(token.text) > MOST_DIGITS:
            raise self._fault(f"expected {wanted}, found {shown(token)}", token.position)
        return int(token.text)
