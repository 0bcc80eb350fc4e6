"""The data sets of the study: two moons, drawn, and the 8 x 8 digits that scikit-learn ships."""

from __future__ import annotations

import torch

from two_layer.nets import Data

# The published data file of the moons is not published; these are the settings of this study.
MOONS_TRAIN, MOONS_TEST, MOONS_NOISE = 2048, 512, 0.1


def moons(noise: float = MOONS_NOISE, train: int = MOONS_TRAIN, test: int = MOONS_TEST) -> Data:
    """Return two interleaving half circles with Gaussian noise."""
    from sklearn.datasets import make_moons

    rows, gold = make_moons(train + test, noise=noise, random_state=0)
    values, classes = torch.tensor(rows, dtype=torch.float32), torch.tensor(gold)
    return Data("moons", values[:train], classes[:train], values[train:], classes[train:], 2)


def digits(classes: int = 10, wrong: float = 0.0) -> Data:
    """Return 1,797 pictures of digits, a fifth of them for test.

    Args:
        classes: the first so many digits.
        wrong: share of the training labels that are replaced by random ones: the harder the task, the more.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    rows, gold = load_digits(n_class=classes, return_X_y=True)
    parts = train_test_split(rows, gold, test_size=0.2, random_state=0, stratify=gold)
    train, test = (torch.tensor(part / 16, dtype=torch.float32) for part in parts[:2])
    train_gold, test_gold = (torch.tensor(part) for part in parts[2:])
    generator = torch.Generator().manual_seed(0)
    replaced = torch.rand(len(train_gold), generator=generator) < wrong
    random = torch.randint(classes, train_gold.shape, generator=generator)
    train_gold = torch.where(replaced, random, train_gold)
    return Data(f"{classes} digits", train, train_gold, test, test_gold, classes)
