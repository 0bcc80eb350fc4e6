"""The named-axis notation and the check of a table against tensors."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import bert_config, random_tensors

from merge.errors import SpecError
from merge.symmetry.architectures.bert import bert
from merge.symmetry.spec import PermutationSpec, TensorAxis, parse


def shapes_of(config: dict) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in random_tensors(config, 0).items()}


def test_a_line_names_the_axes_in_order() -> None:
    """Fixed, plain and split axes each have one spelling."""
    assert parse("- residual") == (TensorAxis(), TensorAxis(("residual",), ("out",)))
    assert parse("(heads0 qk0) residual'") == (
        TensorAxis(("heads0", "qk0"), ("out", "out")),
        TensorAxis(("residual",), ("in",)),
    )


def test_a_prime_marks_the_contravariant_role() -> None:
    """After one name it marks that name, after a bracket both."""
    assert parse("(heads0 qk0')")[0].roles == ("out", "in")
    assert parse("residual (heads0 v0)'")[1].roles == ("in", "in")


def test_an_equals_sign_marks_what_is_permuted_only() -> None:
    """Gains and gates: role `=`, on a name, on the order inside, or on a whole bracket."""
    assert parse("residual=") == (TensorAxis(("residual",), ("=",)),)
    assert parse("(heads0 qk0=)")[0].roles == ("out", "=")
    assert parse("(heads0 qk0)=")[0].roles == ("=", "=")
    assert [part.roles for part in parse("[ffn0= | ffn0]")[0].parts] == [("=",), ("out",)]
    assert parse("residual=")[0].axis_names() == ["residual"]


def test_a_fixed_order_may_have_a_name_under_which_maps_act() -> None:
    """To a permutation `-turn0` is `-`; the name and the role are for maps."""
    (axis,) = parse("(heads0 -turn0')")
    assert (axis.names, axis.map_only, axis.roles) == (("heads0", "-"), "turn0", ("out", "in"))
    assert axis.axis_names() == ["heads0"]
    assert axis.nested() == [("heads0", "turn0")]
    assert parse("(heads0 -)")[0].map_only == ""
    (plain,) = parse("-turn0")
    assert plain.fixed
    assert (plain.map_only, plain.roles) == ("turn0", ("out",))
    assert [part.map_only for part in parse("(h [-t | -t' | v])")[0].parts] == ["t", "t", ""]


def test_views_say_what_acts_on_their_last_level_and_how() -> None:
    """Of a fused, rotary tensor: queries out, keys in, values under their own name."""
    (axis,) = parse("[(h -t) | (h -t') | (h v) | (h -)]")
    views = axis.views((24,), {"h": 2})
    assert [view.map_axis for view in views] == ["t", "t", "v", ""]
    assert [view.role for view in views] == ["out", "in", "out", "out"]
    assert [view.names for view in views] == [("h", "-"), ("h", "-"), ("h", "v"), ("h", "-")]
    assert views[0].map_shape() == (2, 3)
    assert views[0].index_shapes() == {"h": (2,)}
    (grouped,) = parse("(h q -t)")[0].views((24,), {"h": 2, "q": 3})
    assert grouped.map_shape() == (2, 4)


def test_a_spec_knows_the_group_of_every_axis() -> None:
    """By the name without its layer's number; what is not named is permuted."""
    spec = PermutationSpec("rotary", {"q": "(heads0 -turn0) residual'", "w": "ffn12"}, groups={"turn": "rotary"})
    assert [spec.group(axis) for axis in ("turn0", "turn31", "ffn12")] == ["rotary", "rotary", "permutation"]
    assert spec.outer == {"turn0": "heads0"}
    assert spec.kind("turn0") == "heads"
    assert "turn0" not in PermutationSpec("r", spec.lines, {"heads0": 2}).fit({"q": (8, 3), "w": (5,)})


@pytest.mark.parametrize("line", ["(heads0)", "residual,ffn", "heads0 qk0)", "3d", "a (b c)d"])
def test_a_malformed_line_says_where_reading_stopped(line: str) -> None:
    """A table is typed by hand; a typing error must not become another meaning."""
    with pytest.raises(SpecError, match="malformed at"):
        parse(line)


@pytest.mark.parametrize(
    ("line", "stopped"),
    [
        ("(a b c d)", "d)"),  # three levels at most
        ("(a", ""),
        ("(- a)", "a)"),  # blocks have a name
        ("(a - b)", "b)"),  # only the innermost order may be fixed
        ("(a [b])", "])"),  # one part is no parts
        ("[a | b", ""),
        ("[a b]", "b]"),
        ("[a | ]", "]"),
        ("[[a | b] | c]", "[a | b] | c]"),  # parts lie in parts in no tensor there is
        ("(a [b | (c d)])", "(c d)])"),
        ("(a [b | c] d)", "d)"),
        ("{a}", "}"),
        ("{a b c}", "c}"),
        ("{a [b | c]}", "[b | c]}"),
        ("[{a b} | c]", "{a b} | c]"),
        ("x {a b)", ")"),
        ("a''", "'"),
        ("-'", "'"),
        ("a='", "'"),
        ("a =", "="),
        ("-=", "="),
        ("--a", "-a"),
        ("(-a b)", "b)"),  # blocks have a name of their own
        ("(a -t b)", "b)"),
        ("a |b", "|b"),
        ("a[b | c]", "[b | c]"),
        ("(a b)(c d)", "(c d)"),
    ],
)
def test_reading_stops_at_the_first_word_that_does_not_fit(line: str, stopped: str) -> None:
    """The message shows the rest of the line from there, so that the place is found in a long one."""
    with pytest.raises(SpecError) as caught:
        parse(line)
    assert f"{line!r} is malformed at {stopped!r}" in str(caught.value)


@pytest.mark.parametrize(
    ("line", "spellings"),
    [
        ("[a | b]", ["[a|b]", "[ a | b ]", " [a |b]"]),
        ("(a b')", ["( a b' )"]),
        ("(a [b | c'])", ["(a [b|c'])"]),
        ("{a b}", ["{ a b }"]),
    ],
)
def test_space_inside_brackets_means_nothing(line: str, spellings: list[str]) -> None:
    """Only between items of the line does it divide."""
    assert all(parse(spelt) == parse(line) for spelt in spellings)
    assert parse("a b") != parse("(a b)")


def places(line: str, shape: tuple[int, ...], **sizes: int) -> list[tuple[tuple[str, ...], list[int]]]:
    """Return (names, places along the item) of every view of a line's only item, as one level after another is laid out."""
    (axis,) = parse(line)
    out = []
    for view in axis.views(shape, sizes):
        cells = np.array([view.offset])
        for stride, size in zip(view.strides, view.shape, strict=True):
            cells = (cells[:, None] + stride * np.arange(size)).reshape(-1)
        out.append((view.names, cells.tolist()))
    return out


def test_views_lie_where_a_reshape_says() -> None:
    """Of 24 places: by numpy's own reshape and slicing, for each bracket."""
    cells = np.arange(24)
    assert places("a", (24,)) == [(("a",), cells.tolist())]
    assert places("(h a)", (24,), h=4) == [(("h", "a"), cells.tolist())]
    assert places("[a | b | -]", (24,)) == [
        (("a",), cells[:8].tolist()), (("b",), cells[8:16].tolist()), (("-",), cells[16:].tolist()),
    ]  # fmt: skip
    split = cells.reshape(4, 3, 2)
    assert places("(h [a | b | c])", (24,), h=4) == [
        (("h", name), split[:, k].reshape(-1).tolist()) for k, name in enumerate("abc")
    ]
    halves = cells.reshape(2, 12)
    assert places("[(h a) | (h -)]", (24,), h=4) == [(("h", name), halves[k].tolist()) for k, name in enumerate("a-")]
    assert places("{h a}", (4, 6)) == [(("h", "a"), cells.tolist())]
    assert places("(h q v)", (24,), h=2, q=3) == [(("h", "q", "v"), cells.tolist())]


@pytest.mark.parametrize(
    "line", ["a", "-", "(h a)", "(h q v)", "(h q -)", "[a | b]", "[(h a) | -]", "(h [a | b])", "{h a}"]
)
def test_the_views_of_an_item_hold_every_place_once(line: str) -> None:
    """No unit is moved twice and none is left behind."""
    found = places(line, (4, 6) if line.startswith("{") else (24,), h=4, q=3)
    assert sorted(cell for _, cells in found for cell in cells) == list(range(24))


def test_three_levels_have_a_row_for_each_block_of_the_outermost() -> None:
    """Grouped queries: the order inside depends on the key/value head, not on the query head."""
    lines = {"q": "(kv queries -) d", "k": "(kv -) d", "v": "(kv v) d", "o": "d (kv queries v)"}
    spec = PermutationSpec("grouped", lines, {"kv": 2, "queries": 3})
    sizes = spec.fit({"q": (24, 5), "k": (8, 5), "v": (8, 5), "o": (5, 24)})
    assert sizes == {"kv": (2,), "queries": (2, 3), "d": (5,), "v": (2, 4)}
    assert spec.outer == {"queries": "kv", "v": "kv"}


def test_what_is_inside_blocks_is_known_through_parts_too() -> None:
    spec = PermutationSpec("fused", {"a": "[(h x) | (h -)] d", "b": "(g [y | z'])", "c": "{k w}"}, {"h": 2, "g": 2})
    assert spec.outer == {"x": "h", "y": "g", "z": "g", "w": "k"}
    with pytest.raises(SpecError, match='axis "x" is inside blocks of "h" and of "g"'):
        assert not PermutationSpec("wrong", {"a": "(h x)", "b": "(g x)"}).outer


@pytest.mark.parametrize(
    ("line", "shape", "said"),
    [
        ("[a | b] -", (7, 3), "t: axis of size 7 does not split into 2 equal parts"),
        ("(h [a | b]) -", (12, 3), "t: axis of size 3 does not split into 2 equal parts"),
        ("(h q v) -", (20, 3), "t: axis of size 5 does not split into 3 blocks"),
        ("(h q v) -", (10, 3), 't: axis of size 10 does not split into 4 blocks ("h")'),
        ("(u v) -", (10, 3), 't: the number of blocks of axis "u" is not stated'),
        ("{h a} -", (4, 6), "t has shape (4, 6), but its line '{h a} -' names 3 axes"),
        ("{h a} b", (5, 6, 3), '"h" already has size (4,)'),
        ("a a", (3, 4), 'axis "a" already has size (3,)'),
    ],
)
def test_a_shape_that_does_not_fit_a_line_is_an_error(line: str, shape: tuple[int, ...], said: str) -> None:
    """Blocks that a bracket counts must agree with those of every other line."""
    spec = PermutationSpec("odd", {"s": "(h c)", "t": line}, {"h": 4, "q": 3})
    with pytest.raises(SpecError) as caught:
        spec.fit({"s": (8,), "t": shape})
    assert said in str(caught.value)


def test_equal_parts_of_one_tensor_may_be_one_axis() -> None:
    """The control of the shapes that do not fit."""
    spec = PermutationSpec("odd", {"s": "(h c)", "t": "[a | a] b"}, {"h": 4, "q": 3})
    assert spec.fit({"s": (8,), "t": (8, 8)})["a"] == (4,)


def test_sizes_are_read_off_the_tensors() -> None:
    """Plain axes have one index array, inner axes one row a head."""
    config = bert_config()
    sizes = bert(config).fit(shapes_of(config))
    assert sizes["residual"] == (24,)
    assert sizes["ffn1"] == (40,)
    assert sizes["heads0"] == (4,)
    assert sizes["qk0"] == sizes["v0"] == (4, 6)
    assert sizes["labels"] == (3,)


def test_a_deleted_line_is_an_error_that_names_the_tensor() -> None:
    """Every tensor is covered, or nothing is aligned: for every single line of the BERT table."""
    config = bert_config()
    spec, shapes = bert(config), shapes_of(config)
    for deleted in shapes:
        lines = {name: line for name, line in spec.lines.items() if name != deleted}
        with pytest.raises(SpecError, match="has no line") as caught:
            PermutationSpec("bert", lines, spec.sizes).fit(shapes)
        assert deleted in str(caught.value)
    assert len(shapes) == 41


def test_a_size_that_contradicts_its_axis_names_both_tensors() -> None:
    """The message shows where the axis got its size, so that the user sees which model is odd."""
    config = bert_config()
    shapes = shapes_of(config) | {"bert.encoder.layer.1.intermediate.dense.weight": (48, 24)}
    with pytest.raises(SpecError) as caught:
        bert(config).fit(shapes)
    message = str(caught.value)
    assert (
        "bert.encoder.layer.1.intermediate.dense.weight has shape (48, 24)" in message
        or "already has size (48,)" in message
    )
    assert "ffn1" in message


def test_a_wrong_rank_and_an_odd_head_count_are_errors() -> None:
    """Both would otherwise permute across heads, which is another function."""
    config = bert_config()
    spec = bert(config)
    with pytest.raises(SpecError, match="names 2 axes"):
        spec.fit({"bert.pooler.dense.weight": (24,)})
    with pytest.raises(SpecError, match="does not split into 5 blocks"):
        PermutationSpec("bert", spec.lines, {"heads0": 5}).fit(
            {"bert.encoder.layer.0.attention.self.query.bias": (24,)}
        )


def test_all_faults_are_in_one_message() -> None:
    """A user mends a table once, not fault by fault."""
    with pytest.raises(SpecError) as caught:
        bert(bert_config()).fit({"nonsense": (3,), "classifier.weight": (3,)})
    assert "nonsense" in str(caught.value)
    assert "classifier.weight" in str(caught.value)


def test_kinds_are_the_words_users_type() -> None:
    """Axes inside heads belong to the kind heads; layer numbers are dropped."""
    spec = bert(bert_config())
    assert [spec.kind(axis) for axis in ("qk1", "v0", "heads1", "ffn0", "residual", "pooler")] == [
        "heads", "heads", "heads", "ffn", "residual", "pooler",
    ]  # fmt: skip
