"""The table on 200 tiny images and a tiny model, its table of text, and what it refuses."""

import weakref

import numpy as np
import pytest
import torch

from frontier.errors import UserError
from frontier.models.init import initialise
from frontier.models.mae import MAE, MAEConfig
from frontier.probe import linear
from frontier.probe.baselines import colour_texture
from frontier.probe.evaluate import evaluate
from frontier.probe.features import LabelledSamples, encoder_features, extract, pool
from frontier.probe.table import table

MEAN, STD = [100.0, 110.0, 120.0], [40.0, 50.0, 60.0]


def stripes(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images [count, 3, 32, 32] uint8 of four classes: stripes, narrow and wide, in two colours."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 4
    frequency = np.where(labels % 2, 0.6, 1.8)[:, None]
    wave = 60 * np.sin(np.arange(32) * frequency + random.uniform(0, 6.3, (count, 1)))
    images = np.broadcast_to(wave[:, None, None], (count, 3, 32, 32)) + 110
    images[:, 0] += 25 * (labels // 2)[:, None, None]
    images += random.normal(0, 25, images.shape)
    return images.clip(0, 255).astype(np.uint8), labels.astype(np.int64)


def images_of(images: np.ndarray, labels: np.ndarray) -> LabelledSamples:
    return LabelledSamples(read=lambda start, stop: images[start:stop], labels=labels)


def model(seed: int) -> MAE:
    module = MAE(MAEConfig.preset("vit_debug", image_size=32))
    initialise(module, seed)
    return module.eval()


def test_table_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "RATE_BUDGET", 150.0)  # quick; the full recipe is run in test_command.py
    train, test = images_of(*stripes(160, 0)), images_of(*stripes(40, 1))
    lines: list[str] = []
    encoders = {
        "pretrained": lambda: encoder_features(model(0), MEAN, STD, 32, "mean_std"),
        "random": lambda: encoder_features(model(1), MEAN, STD, 32, "mean_std"),
        "colour_texture": lambda: colour_texture,
    }
    rows = evaluate(encoders, train, test, seed=5, batch=64, progress=lines.append)
    assert [(row["method"], row["encoder"]) for row in rows] == [
        (m, e) for m in ("linear", "logistic", "knn") for e in encoders
    ]
    for row in rows:
        assert (row["n_train"], row["n_test"], row["classes"], row["seed"]) == (160, 40, 4, 5)
        assert 0 <= row["ci95"][0] <= row["accuracy"] <= row["ci95"][1] <= 1
        assert row["accuracy"] > 0.5
        assert ("difference" in row) == (row["encoder"] == "pretrained")
    assert rows[0]["features"] == 64
    assert rows[2]["accuracy"] > 0.9
    by = {(row["method"], row["encoder"]): row["accuracy"] for row in rows}
    for row in rows[::3]:
        assert list(row["difference"]) == ["random", "colour_texture"]
        for other, found in row["difference"].items():
            assert found["accuracy"] == pytest.approx(row["accuracy"] - by[row["method"], other])
            assert found["ci95"][0] <= found["accuracy"] <= found["ci95"][1]
            assert found["resamples"] == 2000
    assert [line.split(":")[0] for line in lines] == list(encoders)
    again = evaluate(encoders, train, test, ["knn", "logistic"], seed=5, batch=7)
    assert [r["accuracy"] for r in again] == [by[m, e] for m in ("knn", "logistic") for e in encoders]
    text = table(rows).splitlines()
    assert len(text) == 10
    assert text[1].split()[:2] == ["linear", "pretrained"]
    assert text[2].split()[0] == "random"
    assert "+" in text[2] or "-" in text[2]


def test_one_encoder_at_a_time() -> None:
    made: list[weakref.ref] = []

    def factory():
        assert all(earlier() is None for earlier in made)

        def function(images: np.ndarray) -> np.ndarray:
            return images.mean(axis=(2, 3), dtype=np.float32)

        made.append(weakref.ref(function))
        return function

    train = images_of(*stripes(16, 0))
    rows = evaluate({"a": factory, "b": factory}, train, train, ["knn"])
    assert len(made) == 2
    assert "difference" not in rows[0]


def test_unlabelled_samples_are_left_out_and_order_is_kept() -> None:
    images, labels = stripes(20, 0)
    labels[[0, 7, 8, 19]] = -1
    data = images_of(images, labels)
    read = np.concatenate(list(data.batches(4)))
    np.testing.assert_array_equal(read, images[labels >= 0])
    assert len(data.labelled) == 16
    labels[4:8] = -1
    asked = []
    spied = LabelledSamples(read=lambda a, b: asked.append(a) or images[a:b], labels=labels)
    list(spied.batches(4))
    assert asked == [0, 8, 12, 16]  # a piece without labels is not read


def test_classes_that_training_lacks_count_as_wrong() -> None:
    images, labels = stripes(40, 0)
    train = images_of(images, np.where(labels == 3, -1, labels * 10))  # numbers with gaps
    rows = evaluate({"colour_texture": lambda: colour_texture}, train, images_of(images, labels * 10), ["knn"])
    assert rows[0]["classes"] == 3
    assert (rows[0]["n_train"], rows[0]["n_test"]) == (30, 40)
    assert 0.5 < rows[0]["accuracy"] <= 0.75


def test_refuses_what_cannot_be_probed() -> None:
    images, labels = stripes(40, 0)
    good, encoders = images_of(images, labels), {"colour_texture": lambda: colour_texture}
    none, one = images_of(images, np.full(40, -1)), images_of(images, np.zeros(40, np.int64))
    with pytest.raises(UserError, match="no sample of the training split has a label"):
        evaluate(encoders, none, good)
    with pytest.raises(UserError, match="no sample of the test split has a label"):
        evaluate(encoders, good, none)
    with pytest.raises(UserError, match="of one class"):
        evaluate(encoders, one, good)
    broken = {"pretrained": lambda: lambda batch: np.full((len(batch), 3), np.nan, np.float32)}
    with pytest.raises(UserError, match=r"40 of 40 samples are not finite, encoder 'pretrained'"):
        evaluate(broken, good, good)


def test_features_are_those_of_the_model() -> None:
    images, _ = stripes(6, 0)
    module = model(0)
    values = torch.from_numpy((images - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))).float()
    with torch.no_grad():
        tokens = module.encode(values)
        first, last = module.encode_layers(values, [0, 1])
    torch.testing.assert_close(last, tokens)
    data = images_of(images, np.zeros(6, np.int64))

    def found(pooling: str, layers: list[int] | None = None, size: int = 32) -> torch.Tensor:
        return torch.from_numpy(extract(encoder_features(module, MEAN, STD, size, pooling, layers), data, 4, "x"))

    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(found("mean"), tokens[:, 1:].mean(1), **close)
    torch.testing.assert_close(found("cls"), tokens[:, 0], **close)
    spread = tokens[:, 1:].std(1, correction=0)
    torch.testing.assert_close(found("mean_std"), torch.cat([tokens[:, 1:].mean(1), spread], 1), **close)
    torch.testing.assert_close(found("cls", [0, 1]), torch.cat([first[:, 0], last[:, 0]], 1), **close)
    with pytest.raises(UserError, match="layer 2 of 2 blocks"):
        found("mean", [2])
    with pytest.raises(UserError, match="pooling 'max' is unknown"):
        pool(tokens, "max")


def test_images_of_another_size_are_resized() -> None:
    images, _ = stripes(3, 0)
    large = images.repeat(2, axis=2).repeat(2, axis=3)
    function = encoder_features(model(0), MEAN, STD, 32)
    small = torch.nn.functional.interpolate(torch.from_numpy(large).float(), (32, 32), mode="bilinear", antialias=True)
    np.testing.assert_allclose(function(large), function(small.numpy()), atol=1e-4)
    assert function(images.astype(np.uint16)).shape == (3, 32)
