"""Tokens of two tokenizers matched by the characters that they cover."""

from __future__ import annotations

from merge.layers.stitching.pairs import matched_pieces

SPECIAL = (-1, 0, 0)


def test_the_same_tokens_are_matched_one_to_one() -> None:
    tokens = [SPECIAL, (0, 0, 3), (0, 4, 7), (0, 7, 9), SPECIAL]
    assert matched_pieces(tokens, tokens) == [((k,), (k,)) for k in range(5)]


def test_pieces_end_where_a_token_of_both_ends() -> None:
    """'unhappily so': un|happily|so against unhapp|ily|so, by hand."""
    left = [(0, 0, 2), (0, 2, 9), (0, 10, 12)]
    right = [SPECIAL, (0, 0, 6), (0, 6, 9), (0, 10, 12), SPECIAL]
    assert matched_pieces(left, right) == [((0, 1), (1, 2)), ((2,), (3,))]


def test_texts_of_a_pair_are_not_mixed_up() -> None:
    left = [(0, 0, 3), (1, 0, 3)]
    assert matched_pieces(left, [(1, 0, 3), (0, 0, 3)]) == [((0,), (1,)), ((1,), (0,))]


def test_the_bytes_of_one_character_are_one_piece() -> None:
    assert matched_pieces([(0, 0, 1), (0, 0, 1), (0, 1, 2)], [(0, 0, 1), (0, 1, 2)]) == [((0, 1), (0,)), ((2,), (1,))]


def test_special_tokens_are_matched_in_their_order_and_left_over_where_one_side_has_more() -> None:
    assert matched_pieces([SPECIAL, (0, 0, 1), SPECIAL], [SPECIAL, (0, 0, 1)]) == [((0,), (0,)), ((1,), (1,))]
