"""The multilayer perceptron, majorities of neighbours and clusters, against brute force and problems with known answers."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from frontier.errors import UserError
from frontier.probe import clusters, heads, knn, linear, mlp
from frontier.probe.methods import METHODS, chosen, named


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlp, "HIDDEN", 64)


def ring(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two features; class 1 lies outside a circle that holds half of the samples: no line tells them apart."""
    x = np.random.default_rng(seed).normal(size=(n, 2)).astype(np.float32)
    return x, (np.square(x).sum(1) > 2 * np.log(2)).astype(np.int64)


def test_mlp_learns_what_no_line_can(small: None) -> None:
    (x, labels), (queries, truth) = ring(600), ring(300, 1)
    predicted, details = mlp.probe(x, labels, queries, 0)
    assert (predicted == truth).mean() > 0.93
    assert (linear.probe(x, labels, queries, 0, recipe=linear.Recipe(600, 0.5, 300, 1))[0] == truth).mean() < 0.7
    assert details["n_val"] == 120 and details["validation"] == "0.2 of training"
    assert details["best_epoch"] <= details["epochs"] <= heads.EPOCHS


def test_mlp_is_a_function_of_the_seed_and_of_its_validation_split(small: None) -> None:
    (x, labels), (queries, _) = ring(200), ring(150, 1)
    first, again, other = (mlp.probe(x, labels, queries, seed)[0] for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    held = ring(50, 2)
    _, details = mlp.probe(x, labels, queries, 0, validation=held)
    assert (details["validation"], details["n_val"]) == ("split", 50)
    # Validation labels turned around: the first epoch is the best there can be.
    wrong = mlp.probe(x, labels, queries, 0, validation=(held[0], 1 - held[1]))[1]
    assert (wrong["best_epoch"], wrong["epochs"]) == (1, 1 + heads.PATIENCE)


def test_mlp_of_several_labels(small: None) -> None:
    x, outside = ring(500)
    queries, truth = ring(200, 1)
    targets = np.stack([outside, x[:, 0] > 0, np.zeros(500)], 1).astype(np.uint8)
    scores, _ = mlp.probe(x, targets, queries, 0)
    assert scores.shape == (200, 3)
    assert ((scores[:, 0] > 0.5) == truth).mean() > 0.9 and ((scores[:, 1] > 0.5) == (queries[:, 0] > 0)).mean() > 0.9
    assert (scores[:, 2] < 0.2).all()


def test_the_best_state_is_kept() -> None:
    x, labels = ring(160)
    held = ring(80, 3)
    head = torch.nn.Linear(2, 2)
    seen = []

    def loss(outputs: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        found = F.cross_entropy(outputs, truth)
        if len(truth) == 80:
            seen.append(float(found))
        return found

    done = heads.fit(head, loss, (x, labels), held, 0, "cpu")
    with torch.no_grad():
        now = float(F.cross_entropy(head(torch.from_numpy(held[0])), torch.from_numpy(held[1])))
    assert now == pytest.approx(min(seen), rel=1e-6)
    assert seen.index(min(seen)) + 1 == done["best_epoch"] and len(seen) == done["epochs"]


def test_a_share_of_every_class_is_held_out() -> None:
    labels = np.repeat([0, 1, 2, 3], [50, 20, 3, 1])
    away = heads.hold_out(labels, 4)
    assert np.bincount(labels[away], minlength=4).tolist() == [10, 4, 1, 0]
    assert np.array_equal(away, heads.hold_out(labels, 4)) and not np.array_equal(away, heads.hold_out(labels, 5))


def test_loss_of_shares_is_that_of_pixels_and_of_labels_a_sum() -> None:
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    pixels = torch.tensor([[0, 0, 1, 3], [2, 2, 2, 2], [1, 3, 3, 0]])
    shares = F.one_hot(pixels, 4).float().mean(1)
    expected = F.cross_entropy(logits.repeat_interleave(4, 0), pixels.flatten())
    torch.testing.assert_close(heads.share_loss(logits, shares), expected)
    truth = (shares > 0).float()
    by_hand = -(truth * F.logsigmoid(logits) + (1 - truth) * F.logsigmoid(-logits)).sum(1).mean()
    torch.testing.assert_close(heads.loss_of(truth.numpy())(logits, truth), by_hand)


def test_linear_of_several_labels_equals_modules_and_autograd() -> None:
    random = np.random.default_rng(0)
    x, queries = (random.normal(size=(n, 5)).astype(np.float32) for n in (60, 30))
    targets = (x[:, :3] + random.normal(0, 0.5, (60, 3)) > 0).astype(np.uint8)
    recipe = linear.Recipe(60, 0.5, 200, 1)
    scores, _ = linear.probe(x, targets, queries, 4, recipe=recipe)
    generator = torch.Generator().manual_seed(4)
    norm, layer = torch.nn.BatchNorm1d(5, affine=False, eps=1e-6, momentum=None), torch.nn.Linear(5, 3)
    torch.nn.init.normal_(layer.weight, std=0.01, generator=generator)
    torch.nn.init.zeros_(layer.bias)
    momenta = [torch.zeros_like(p) for p in layer.parameters()]
    for step in range(200):
        loss = heads.loss_of(targets)(layer(norm(torch.from_numpy(x))), torch.from_numpy(targets).float())
        gradients = torch.autograd.grad(loss, list(layer.parameters()))
        with torch.no_grad():
            for p, gradient, momentum in zip(layer.parameters(), gradients, momenta, strict=True):
                linear.lars_step(p, gradient, momentum, recipe.rate_at(step))
    expected = layer(norm.eval()(torch.from_numpy(queries))).sigmoid().detach().numpy()
    np.testing.assert_allclose(scores, expected, atol=1e-3)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_majority_of_neighbours_is_brute_force(metric: knn.Metric) -> None:
    random = np.random.default_rng(1)
    x, queries = (random.normal(size=(n, 4)).astype(np.float32) for n in (90, 60))
    labels = random.integers(0, 3, 90)
    expected = []
    for query in queries:
        if metric == "cosine":
            far = [-(query @ row) / np.linalg.norm(query) / np.linalg.norm(row) for row in x]
        else:
            far = [np.linalg.norm(query - row) for row in x]
        near = labels[np.argsort(far)[:20]]
        counts = np.bincount(near, minlength=3)
        # Of equal counts the one whose neighbours are nearer by rank.
        ranks = [np.sum(20 - np.flatnonzero(near == c)) if counts[c] == counts.max() else -1 for c in range(3)]
        expected.append(int(np.argmax(ranks)))
    assert knn.knn(x, labels, queries, 20, None, metric=metric).tolist() == expected


def test_neighbours_vote_on_several_labels() -> None:
    x = np.array([[1, 0], [1, 0.1], [-1, 0], [-1, 0.1]], np.float32)
    targets = np.array([[1, 1], [1, 0], [0, 0], [0, 1]], np.float32)
    found = knn.votes(x, targets, np.array([[2, 0.1]], np.float32), 2, None, metric="l2")
    np.testing.assert_allclose(found, [[1.0, 0.5]], atol=1e-3)
    answers, details = knn.majority_l2(x, targets.astype(np.uint8), x, 0)
    assert answers.shape == (4, 2) and details["vote"] == "majority" and details["neighbours"] == 4


def blobs(n: int, seed: int, spread: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, n)
    centres = np.array([[0, 0, 0], [5, 0, 0], [0, 5, 0], [0, 0, 5]])
    return (centres[labels] + random.normal(0, spread, (n, 3))).astype(np.float32), labels


@pytest.mark.parametrize("method", [clusters.kmeans, clusters.pca_kmeans])
def test_clusters_get_their_names_from_training(method: clusters.Cluster) -> None:
    (x, labels), (queries, truth) = blobs(120, 0), blobs(80, 1)
    found, details = method(x, queries, 4, 0)
    predicted, row = clusters.scores(found, labels, truth, 4, 0)
    assert (predicted == truth).all() and row["accuracy_matched_on_test"] == row["nmi"] == row["ari"] == 1
    assert row["raw_accuracy"] == pytest.approx(np.mean(found.test == truth)) and details["clusters"] == 4
    # With training labels that go round by one, so do the answers; what knows no names stays.
    shifted, same = clusters.scores(found, (labels + 1) % 4, truth, 4, 0)
    assert ((shifted - truth) % 4 == 1).all() and same["accuracy_matched_on_test"] == 1


def test_components_hold_nine_tenths_of_the_variance() -> None:
    random = np.random.default_rng(0)
    hidden = random.normal(size=(200, 3))
    x = (hidden @ random.normal(size=(3, 20)) + random.normal(0, 0.01, (200, 20))).astype(np.float32)
    assert 1 <= clusters.pca_kmeans(x, x[:5], 2, 0)[1]["components"] <= 3


def test_test_samples_of_classes_that_training_lacks_are_wrong() -> None:
    (x, labels), (queries, truth) = blobs(120, 0), blobs(80, 1)
    keep = labels < 3
    found, _ = clusters.kmeans(x[keep], queries, 3, 0)
    predicted, row = clusters.scores(found, labels[keep], np.where(truth < 3, truth, -1), 3, 0)
    assert (predicted == np.where(truth < 3, truth, -1)).sum() == (truth < 3).sum()
    assert row["nmi"] < 1


def test_umap_is_fitted_on_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class UMAP:
        def __init__(self, **settings: object) -> None:
            made.append(settings)

        def fit_transform(self, values: np.ndarray) -> np.ndarray:
            assert len(values) == 120
            return values[:, :2]

        def transform(self, values: np.ndarray) -> np.ndarray:
            return values[:, :2]

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=UMAP))
    (x, _), (queries, _) = blobs(120, 0), blobs(80, 1)
    found, details = clusters.umap_kmeans(x, queries, 4, 5)
    assert made == [{"n_neighbors": 30, "min_dist": 0.0, "n_components": 2, "random_state": 5}]
    assert len(found.test) == 80 and details["components"] == 2


@pytest.mark.slow  # half a minute of compiling
def test_umap_itself() -> None:
    (x, labels), (queries, truth) = blobs(120, 0), blobs(80, 1)
    predicted, _ = clusters.scores(clusters.umap_kmeans(x, queries, 4, 0)[0], labels, truth, 4, 0)
    assert (predicted == truth).mean() > 0.9


def test_methods_by_name_and_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frontier.probe.methods.find_spec", lambda name: None)
    run, left_out = chosen(None, "classification", "label")
    assert left_out == ["umap_kmeans"] and "pca_kmeans" in run and "segment" not in run
    assert chosen(None, "multilabel", "labels")[0] == ["linear", "mlp", "knn", "knn20_cosine", "knn20_l2"]
    assert named("knn, linear") == ["linear", "knn"] and named("all") is None
    with pytest.raises(UserError, match="umap_kmeans needs a package .*--method pca_kmeans"):
        chosen(["umap_kmeans"], "classification", "label")
    with pytest.raises(UserError, match="logistic does not take labels for multilabel.*linear,mlp"):
        chosen(["logistic"], "multilabel", "labels")
    assert all(callable(method.load()) for method in METHODS.values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", ["linear", "mlp", "knn", "knn20_cosine", "knn20_l2"])
def test_answers_on_a_gpu_are_those_on_a_cpu(method: str, small: None) -> None:
    (x, labels), (queries, _) = blobs(400, 0, 1.5), blobs(300, 1, 1.5)
    ours, theirs = (METHODS[method].load()(x, labels, queries, 0, device)[0] for device in ("cuda", "cpu"))
    assert (ours == theirs).mean() > 0.98
