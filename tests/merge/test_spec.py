"""The named-axis notation and the check of a table against tensors."""

from __future__ import annotations

import pytest
from tiny import bert_config, random_tensors

from merge.architectures.bert import bert
from merge.errors import SpecError
from merge.spec import PermutationSpec, TensorAxis, parse


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


@pytest.mark.parametrize("line", ["(heads0)", "(a b c)", "residual,ffn", "heads0 qk0)", "3d", "a (b c)d"])
def test_a_malformed_line_says_where_reading_stopped(line: str) -> None:
    """A table is typed by hand; a typing error must not become another meaning."""
    with pytest.raises(SpecError, match="malformed at"):
        parse(line)


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
