"""The three classifiers against brute force, hand computation and scikit-learn."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from frontier.errors import UserError
from frontier.probe import knn, linear, logistic
from frontier.probe.standardise import standardise


def clusters(per_class: int, classes: int, features: int, spread: float, seed: int = 0):
    """Gaussian clusters: (x [n, features] float32, labels [n])."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, features))
    labels = np.repeat(np.arange(classes), per_class)
    x = centres[labels] + spread * random.normal(size=(len(labels), features))
    return x.astype(np.float32), labels.astype(np.int64)


def test_standardise_uses_the_training_split_and_spares_constants() -> None:
    random = np.random.default_rng(0)
    train = random.normal(3, 2, (50, 4)).astype(np.float32)
    train[:, 2] = 1234.567
    test = random.normal(3, 2, (9, 4)).astype(np.float32)
    test[:, 2] = 1235.567
    a, b = standardise(train, test)
    assert a.dtype == np.float32
    np.testing.assert_allclose(a[:, [0, 1, 3]].std(axis=0), 1, rtol=1e-5)
    np.testing.assert_allclose(b[:, 0], (test[:, 0] - train[:, 0].mean()) / train[:, 0].std(), rtol=1e-4)
    np.testing.assert_allclose(a[:, 2], 0, atol=1e-3)
    np.testing.assert_allclose(b[:, 2], 1, atol=1e-3)


def test_knn_equals_brute_force() -> None:
    x, labels = clusters(30, 4, 6, 1.0)
    queries, _ = clusters(25, 4, 6, 1.5, seed=1)
    expected = []
    for query in queries:
        similarity = np.array([query @ row / np.linalg.norm(query) / np.linalg.norm(row) for row in x])
        votes = np.zeros(4)
        for index in np.argsort(-similarity)[:20]:
            votes[labels[index]] += np.exp(similarity[index] / 0.07)
        expected.append(votes.argmax())
    assert knn.knn(x, labels, queries).tolist() == expected
    assert len(set(expected)) == 4


def test_knn_weighs_neighbours_and_survives_few() -> None:
    train = np.array([[1, 0], [0.6, 0.8], [0.6, 0.8]], np.float32)
    labels = np.array([0, 1, 1])
    query = np.array([[1, 0.1]], np.float32)
    assert knn.knn(train, labels, query).tolist() == [0]  # one near beats two far
    assert knn.knn(train, labels, query, temperature=100.0).tolist() == [1]
    predicted, details = knn.probe(train, labels, query, seed=0)
    assert len(predicted) == 1
    assert details["neighbours"] == 3


def test_lars_by_hand() -> None:
    weight, gradient = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.6, 0.8]])
    momentum = torch.zeros_like(weight)
    linear.lars_step(weight, gradient, momentum, lr=2.0, beta=0.9, trust=0.1)
    # |w| = 5, |g| = 1: d = g · 0.1 · 5 = (0.3, 0.4); w - 2 d
    torch.testing.assert_close(weight, torch.tensor([[2.4, 3.2]]))
    linear.lars_step(weight, gradient, momentum, lr=2.0, beta=0.9, trust=0.1)
    # |w| = 4: d = (0.24, 0.32); m = 0.9 (0.3, 0.4) + d = (0.51, 0.68)
    torch.testing.assert_close(momentum, torch.tensor([[0.51, 0.68]]))
    torch.testing.assert_close(weight, torch.tensor([[1.38, 1.84]]))


def test_lars_weight_decay_vectors_and_zeros() -> None:
    weight = torch.tensor([[3.0, 4.0]])
    momentum = torch.zeros_like(weight)
    linear.lars_step(weight, torch.tensor([[-3.0, 4.0]]), momentum, lr=1.0, trust=0.5, weight_decay=1.0)
    torch.testing.assert_close(momentum, torch.tensor([[0.0, 2.5]]))  # d = (0, 8), scaled to 0.5 · 5
    bias, momentum = torch.tensor([1.0, 1.0]), torch.zeros(2)
    linear.lars_step(bias, torch.tensor([0.5, -0.5]), momentum, lr=0.1, weight_decay=7.0)
    torch.testing.assert_close(bias, torch.tensor([0.95, 1.05]))
    weight, momentum = torch.zeros(1, 2), torch.zeros(1, 2)
    linear.lars_step(weight, torch.tensor([[1.0, 0.0]]), momentum, lr=0.1)
    torch.testing.assert_close(weight, torch.tensor([[-0.1, 0.0]]))


def test_recipe_is_mae_on_imagenet_and_scaled_on_small_sets() -> None:
    imagenet = linear.Recipe.for_samples(1_281_167)
    assert imagenet == linear.Recipe(batch=16_384, rate=6.4, epochs=90, steps_per_epoch=78)
    assert imagenet.rate_at(0) == 0
    assert imagenet.rate_at(5 * 78) == pytest.approx(3.2)
    assert imagenet.rate_at(10 * 78) == pytest.approx(6.4)
    assert imagenet.rate_at(50 * 78) == pytest.approx(3.2)
    assert imagenet.rate_at(90 * 78 - 1) == pytest.approx(0, abs=1e-5)
    small = linear.Recipe.for_samples(512)
    assert (small.batch, small.rate, small.steps_per_epoch) == (512, 0.2, 1)
    assert sum(map(small.rate_at, range(small.epochs))) == pytest.approx(linear.RATE_BUDGET, rel=0.01)
    assert linear.Recipe.for_samples(40_000).epochs == 90


@pytest.mark.parametrize("batch", [60, 16])
def test_linear_probe_equals_modules_and_autograd(batch: int) -> None:
    x, labels = clusters(20, 3, 5, 1.5)
    queries, _ = clusters(40, 3, 5, 1.5, seed=1)
    recipe = linear.Recipe(batch, 0.5, 300, 60 // batch)
    predicted, details = linear.probe(x, labels, queries, seed=4, recipe=recipe)
    assert details == {"epochs": 300, "steps": 300 * (60 // batch), "batch": batch, "rate": 0.5}

    generator = torch.Generator().manual_seed(4)
    norm, layer = torch.nn.BatchNorm1d(5, affine=False, eps=1e-6), torch.nn.Linear(5, 3)
    torch.nn.init.normal_(layer.weight, std=0.01, generator=generator)
    torch.nn.init.zeros_(layer.bias)
    momenta = [torch.zeros_like(p) for p in layer.parameters()]
    step = 0
    for _ in range(300):
        order = torch.arange(60) if batch == 60 else torch.randperm(60, generator=generator)
        for index in range(60 // batch):
            chosen = order[index * batch : (index + 1) * batch]
            loss = F.cross_entropy(layer(norm(torch.from_numpy(x)[chosen])), torch.from_numpy(labels)[chosen])
            gradients = torch.autograd.grad(loss, list(layer.parameters()))
            with torch.no_grad():
                for p, gradient, momentum in zip(layer.parameters(), gradients, momenta, strict=True):
                    linear.lars_step(p, gradient, momentum, recipe.rate_at(step))
            step += 1
    expected = layer(norm.eval()(torch.from_numpy(queries))).argmax(dim=1)
    assert predicted.tolist() == expected.tolist()


def test_linear_probe_learns_a_small_set() -> None:
    x, labels = clusters(40, 5, 16, 0.3)
    queries, truth = clusters(20, 5, 16, 0.3, seed=1)
    predicted, _ = linear.probe(x, labels, queries, seed=0)
    assert (predicted == truth).mean() == 1


def test_logistic_equals_scikit_learn_on_separable_data() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, labels = clusters(20, 3, 4, 0.2)
    queries, truth = clusters(50, 3, 4, 0.9, seed=1)
    predicted, details = logistic.probe(x, labels, queries, seed=0)
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=1 / (details["penalty"] * len(x)), max_iter=5000, tol=1e-6)
    )
    assert (model.fit(x, labels).predict(queries) == predicted).mean() > 0.99
    assert details["cv_accuracy"] == 1
    easy, labels_of_easy = clusters(50, 3, 4, 0.2, seed=2)
    assert (logistic.probe(x, labels, easy, seed=0)[0] == labels_of_easy).mean() == 1
    assert (predicted == truth).mean() > 0.6


def test_logistic_regularises_noise() -> None:
    x, labels = clusters(15, 2, 40, 3.0)
    random = np.random.default_rng(0)
    noisy = np.concatenate([x, random.normal(size=(30, 60)).astype(np.float32)], axis=1)
    penalty, scores = logistic.cross_validate(noisy, labels, seed=0)
    assert penalty >= 0.01
    assert scores[penalty] == max(scores.values())
    assert (penalty, scores) == logistic.cross_validate(noisy, labels, seed=0)


def test_logistic_needs_two_samples_of_each_class() -> None:
    x, _ = clusters(4, 2, 3, 0.1)
    with pytest.raises(UserError, match="smallest class has 1 training sample"):
        logistic.probe(x, np.array([0, 0, 0, 0, 0, 0, 0, 1]), x, seed=0)
    penalty, _ = logistic.cross_validate(x, np.array([0, 0, 0, 0, 0, 0, 1, 1]), seed=0)
    assert penalty > 0
