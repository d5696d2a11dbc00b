"""The judges of embeddings, against scikit-learn's of their kind and counts made one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from tiny_embeddings import clusters, unit

from jobs import linear, neighbours
from jobs.exam import Regression
from jobs.folds import hold_out
from jobs.linear import DECAYS
from jobs.neighbours import hits, nearest, ranks, votes

CPU = torch.device("cpu")


def test_neighbours_vote_as_scikit_learns_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "SEARCHED", 7)
    x = unit(clusters(90, 5, noise=0.4, seed=3)).astype(np.float32)
    y = np.arange(90) % 5
    bank = np.flatnonzero(np.arange(90) % 3 != 2)
    asked_about = np.flatnonzero(np.arange(90) % 3 == 2)
    cosines, which = nearest(torch.from_numpy(x[asked_about]), torch.from_numpy(x), bank, 12)
    assert set(which.unique().tolist()) <= set(bank.tolist())
    for k in (1, 4, 12):
        theirs = KNeighborsClassifier(
            k, algorithm="brute", metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07)
        ).fit(x[bank], y[bank])
        ours = votes(cosines[:, :k], torch.from_numpy(y)[which[:, :k]], 5).softmax(1)
        np.testing.assert_allclose(ours, theirs.predict_proba(x[asked_about]), atol=1e-5)
    few, _ = nearest(torch.from_numpy(x[asked_about]), torch.from_numpy(x), bank[:5], 12)
    assert few.shape == (30, 5)


@pytest.mark.parametrize("decay", [1.0, 1e-2, 1e-4])
def test_the_linear_probe_is_scikit_learns_logistic_regression(
    decay: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "PART", 17)
    x = (clusters(150, 4, noise=0.5, seed=4) * np.geomspace(0.01, 10, 16) + 3).astype(np.float32)
    x[:, 5] = 0.25  # tells nothing, and has no deviation to be divided by
    y, train = np.arange(150) % 4, np.arange(100)
    regression = Regression(torch.from_numpy(x), torch.from_numpy(y), 4, CPU)
    probe = regression.fitted(regression.standard(train), train, decay)
    scaler = StandardScaler().fit(x[train])
    theirs = LogisticRegression(C=1 / (decay * 100), tol=1e-10, max_iter=10_000)
    theirs.fit(scaler.transform(x[train]), y[train])
    ours = probe.logits(torch.from_numpy(x)).softmax(1)
    np.testing.assert_allclose(ours, theirs.predict_proba(scaler.transform(x)), atol=2e-3)


def test_any_number_of_labels_is_a_regression_for_each_class() -> None:
    x = clusters(120, 3, noise=0.5, seed=5).astype(np.float32)
    y = np.random.default_rng(5).random((120, 3)) < 0.4
    y |= np.eye(3, dtype=bool)[np.arange(120) % 3]
    rows = np.arange(120)
    regression = Regression(torch.from_numpy(x), torch.from_numpy(y.astype(np.float32)), 3, CPU)
    probe = regression.fitted(regression.standard(rows), rows, 0.01)
    z = StandardScaler().fit_transform(x)
    theirs = [LogisticRegression(C=1 / 1.2, tol=1e-10, max_iter=10_000).fit(z, y[:, k]) for k in range(3)]
    expected = np.stack([one.predict_proba(z)[:, 1] for one in theirs], axis=1)
    np.testing.assert_allclose(probe.logits(torch.from_numpy(x)).sigmoid(), expected, atol=2e-3)


def test_the_decay_is_the_best_of_what_was_held_out() -> None:
    x = torch.from_numpy(clusters(300, 3, noise=0.35, seed=7).astype(np.float32))
    y = torch.arange(300) % 3
    train, held_out = np.arange(200), np.arange(200) % 5 == 0
    regression = Regression(x, y, 3, CPU)
    found = regression.chosen(train, held_out)
    part = regression.standard(train[~held_out])
    losses = {
        k: regression.loss(regression.fitted(part, train[~held_out], k), train[held_out]) for k in DECAYS
    }
    assert found.decay == min(losses, key=lambda k: losses[k])
    assert found.decay not in (DECAYS[0], DECAYS[-1])
    whole = regression.fitted(regression.standard(train), train, found.decay)
    torch.testing.assert_close(found.logits(x), whole.logits(x), atol=1e-3, rtol=0)
    assert regression.chosen(train, np.zeros(200, bool)).decay == 0.01


@given(st.lists(st.integers(0, 6), min_size=1, max_size=60), st.integers(0, 3))
def test_what_is_held_out_is_whole_groups(groups: list[int], seed: int) -> None:
    found = hold_out(np.array(groups), seed)
    inside, outside = (
        {g for g, held in zip(groups, found, strict=True) if held == side} for side in (True, False)
    )
    assert not inside & outside
    assert outside
    assert bool(inside) == (len(set(groups)) > 1)
    smallest = min(groups.count(g) for g in set(groups))
    assert found.sum() <= max(0.2 * len(groups), smallest)
    assert (hold_out(np.array(groups), seed) == found).all()


def test_the_seed_draws_what_is_held_out() -> None:
    assert len({tuple(np.flatnonzero(hold_out(np.arange(50), seed))) for seed in range(5)}) == 5
    assert hold_out(np.arange(50), 0).sum() == 10


@given(st.data())
def test_hits_are_those_that_are_counted_one_by_one(data: st.DataObject) -> None:
    queries, width = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 6))
    right = data.draw(
        st.lists(st.lists(st.booleans(), min_size=width, max_size=width), min_size=queries, max_size=queries)
    )
    counts = data.draw(st.lists(st.integers(1, 8), min_size=1, max_size=3))
    expected = [sum(any(row[:k]) for row in right) for k in counts]
    assert hits(torch.tensor(right), counts).tolist() == expected


@given(st.data())
def test_ranks_are_those_that_are_counted_one_by_one(data: st.DataObject) -> None:
    """Of small whole numbers, so that there are many ties, and no rounding."""
    queries, searched = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 8))
    numbers = st.lists(st.integers(-2, 2), min_size=2, max_size=2)
    x = data.draw(st.lists(numbers, min_size=queries, max_size=queries))
    y = data.draw(st.lists(numbers, min_size=searched, max_size=searched))
    key_of_y = data.draw(st.lists(st.integers(0, 2), min_size=searched, max_size=searched))
    key_of_x = data.draw(st.lists(st.sampled_from(key_of_y), min_size=queries, max_size=queries))
    expected = []
    for vector, key in zip(x, key_of_x, strict=True):
        cosines = [sum(a * b for a, b in zip(vector, other, strict=True)) for other in y]
        best = max(c for c, k in zip(cosines, key_of_y, strict=True) if k == key)
        expected.append(sum(c >= best for c, k in zip(cosines, key_of_y, strict=True) if k != key))
    vectors = torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)
    found = ranks(*vectors, torch.tensor(key_of_x), torch.tensor(key_of_y), part=2)
    assert found.tolist() == expected
