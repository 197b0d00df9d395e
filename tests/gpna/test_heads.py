"""Task heads: the maths against written-out formulas, missing labels, chunks, bf16, meta, texts never trained."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError

from frontier.errors import UserError
from frontier.models.init import initialise
from gpna.head_sections import TaskUnion
from gpna.heads import Answers, Queries, Text, build_head, draw_pixels, gather_pixels
from gpna.heads.pixels import dice_loss
from gpna.query_attention import QueryAttention, QueryDecoder
from gpna.text_vectors import TextVectors, load_text_vectors

WIDTH, LATENTS, BATCH = 16, 5, 3


def section(head, **settings):
    settings = {"source": "here", "target": "label", **settings}
    if head == "masked":
        del settings["target"]
    return TypeAdapter(TaskUnion).validate_python({"head": head, **settings})


def made(task, seed=0, **more):
    head = build_head(task, WIDTH, **more)
    initialise(head, seed)
    return head


def latents(batch=BATCH, seed=0, **options):
    return torch.randn(batch, LATENTS, WIDTH, generator=torch.Generator().manual_seed(seed), **options)


@pytest.fixture
def text_file(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "texts.npz", names=np.array(["water", "forest", "town"]), vectors=rng.normal(size=(3, 6)))
    return str(tmp_path / "texts.npz")


# ---------------------------------------------------------------- attention


@pytest.mark.parametrize("residual", [False, True])
def test_attention_is_the_written_out_formula(residual):
    attention = QueryAttention(WIDTH, 4, residual)
    initialise(attention, 1)
    attention.double()
    queries, x = torch.randn(BATCH, 7, WIDTH).double(), latents().double()
    q = F.linear(F.layer_norm(queries, (WIDTH,), eps=1e-6), attention.q.weight)
    k, v = F.linear(F.layer_norm(x, (WIDTH,), eps=1e-6), attention.kv.weight).chunk(2, -1)
    parts = []
    for h in range(4):
        mine = slice(4 * h, 4 * h + 4)
        scores = torch.einsum("bqd,bmd->bqm", q[..., mine], k[..., mine]) / math.sqrt(4)
        parts.append(torch.einsum("bqm,bmd->bqd", scores.softmax(-1), v[..., mine]))
    expected = torch.cat(parts, -1) @ attention.proj.weight.T + (queries if residual else 0)
    torch.testing.assert_close(attention(queries, attention.keys_values(x)), expected)


def test_shared_queries_are_those_of_every_sample():
    decoder = QueryDecoder(WIDTH, 2, 3, query_width=6, layers=2)
    initialise(decoder, 1)
    queries = torch.randn(7, 6)
    torch.testing.assert_close(decoder(queries, latents()), decoder(queries.expand(BATCH, -1, -1), latents()))


def test_without_residual_a_query_only_chooses():
    """All latents alike: wherever one looks, one sees the same; with a residual the query itself is seen."""
    same = latents()[:, :1].expand(-1, LATENTS, -1)
    for residual in (False, True):
        decoder = QueryDecoder(WIDTH, 2, 3, query_width=6, residual=residual)
        initialise(decoder, 1)
        found = decoder(torch.randn(7, 6), same)
        assert torch.allclose(found, found[:, :1], atol=1e-5) != residual


def test_heads_must_divide_the_width():
    with pytest.raises(UserError, match="attention_heads .* 3 does not divide width 16"):
        build_head(section("classification", classes=2, attention_heads=3), WIDTH)


# ---------------------------------------------------------------- one learned query


def test_classification_loss():
    head = made(section("classification", classes=3, class_weights=[1.0, 2.0, 5.0], label_smoothing=0.1))
    logits = torch.randn(4, 3)
    loss = head.loss(logits, torch.tensor([2, -1, 0, 1]))
    log_p, weights = logits.log_softmax(-1), torch.tensor([1.0, 2.0, 5.0])
    for i, label in ((0, 2), (2, 0), (3, 1)):
        smooth = 0.9 * F.one_hot(torch.tensor(label), 3) + 0.1 / 3
        assert loss[i].item() == pytest.approx(-(smooth * weights * log_p[i]).sum().item(), rel=1e-5)
    assert loss[1] == 0
    assert head(latents()).shape == (BATCH, 3)
    torch.testing.assert_close(head.predict(logits).sum(1), torch.ones(4))


def test_multilabel_loss_is_the_mean_over_known_labels():
    head = made(section("multilabel", classes=3, class_weights=[1.0, 4.0, 1.0]))
    logits = torch.tensor([[0.3, -0.2, 2.0], [1.0, 1.0, 1.0]])
    loss = head.loss(logits, torch.tensor([[1, 0, -1], [-1, -1, -1]]))
    expected = (math.log1p(math.exp(-0.3)) + 4 * math.log1p(math.exp(-0.2))) / 2
    assert loss.tolist() == pytest.approx([expected, 0.0])
    nan = torch.tensor([[1, 0, math.nan], [math.nan] * 3])
    torch.testing.assert_close(head.loss(logits, nan), loss)


def test_labels_that_the_plan_counts_as_missing_have_no_loss(text_file):
    """Classes below -1, numbers and counts that are infinite: as `gpna.targets.known_labels` has it."""
    three = {"vectors": text_file, "texts": ["water", "forest", "town"]}
    for task in (section("classification", classes=3), section("text", **three)):
        loss = made(task).loss(torch.randn(3, 3), torch.tensor([-2, -9999, 1]))
        assert loss[:2].tolist() == [0, 0] and loss[2] > 0
    number = section("text", task="regression", vectors=text_file, texts=["town"], mean=5.0, std=2.0)
    for task in (section("regression", mean=[5.0], std=[2.0]), number):
        loss = made(task).loss(torch.ones(3, 1), torch.tensor([[math.inf], [-math.inf], [5.0]]))
        assert loss.tolist() == [0, 0, 1]
    loss = made(section("density", size=2)).loss(torch.ones(1, 4, 1), torch.tensor([[[math.inf, -1], [math.nan, 2]]]))
    assert loss.isfinite().all() and loss > 0


@pytest.mark.parametrize("kind", ["mse", "huber"])
def test_regression_loss_is_masked_and_standardised(kind):
    task = section("regression", outputs=3, mean=[10.0, 0.0, -5.0], std=[2.0, 1.0, 10.0], loss=kind)
    head = made(task)
    outputs = torch.tensor([[0.5, 3.0, 0.0], [1.0, 2.0, 3.0]])
    target = torch.tensor([[12.0, -1.0, math.nan], [math.nan] * 3], dtype=torch.float64)
    expected = (0.5**2 + 4**2) / 2 if kind == "mse" else (0.5 * 0.5**2 + 4 - 0.5) / 2
    loss = head.loss(outputs, target)
    assert loss.tolist() == pytest.approx([expected, 0.0])
    assert loss.dtype == torch.float32
    torch.testing.assert_close(head.predict(outputs)[0], torch.tensor([11.0, 3.0, -5.0]))
    assert head.loss(outputs, head.predict(outputs)).abs().max() < 1e-10


def test_regression_needs_statistics():
    with pytest.raises(UserError, match="mean and std"):
        build_head(section("regression"), WIDTH)


# ---------------------------------------------------------------- pixels


def test_segmentation_loss_is_the_mean_over_known_pixels():
    head = made(section("segmentation", classes=3, size=4, class_weights=[1.0, 2.0, 3.0]))
    logits = head(latents())
    target = torch.randint(0, 3, (BATCH, 4, 4))
    target[0, 1:], target[1] = 255, 255
    loss = head.loss(logits, target)
    log_p, weights = logits.log_softmax(-1), torch.tensor([1.0, 2.0, 3.0])
    expected = [-log_p[0, i, c] * weights[c] for i, c in enumerate(target[0, 0].tolist())]
    assert loss[0].item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)
    assert loss[1] == 0
    assert loss[2] > 0


def test_dice_loss_is_written_out():
    p = torch.rand(2, 6, 3).softmax(-1)
    target = torch.tensor([[0, 0, 1, 255, 1, 0], [255] * 6])
    keep = [0, 1, 2, 4, 5]
    terms = []
    for c in (0, 1):  # class 2 is not there
        t, mine = (target[0, keep] == c).float(), p[0, keep, c]
        terms.append(1 - 2 * (mine * t).sum() / (mine.sum() + t.sum()))
    loss = dice_loss(p, target)
    assert loss.tolist() == pytest.approx([torch.stack(terms).mean().item(), 0.0])
    weighted = dice_loss(p, target, torch.tensor([3.0, 1.0, 1.0]))
    assert weighted[0].item() == pytest.approx(((3 * terms[0] + terms[1]) / 4).item())
    perfect = F.one_hot(torch.tensor([[0, 0, 1, 1]]), 3).float()
    assert dice_loss(perfect, torch.tensor([[0, 0, 1, 1]])).item() == pytest.approx(0.0, abs=1e-6)


def test_both_losses_are_the_sum():
    settings = {"classes": 2, "size": 4}
    one, two, both = (made(section("segmentation", loss=k, **settings)) for k in ("cross_entropy", "dice", "both"))
    logits, target = one(latents()), torch.randint(0, 2, (BATCH, 4, 4))
    torch.testing.assert_close(both.loss(logits, target), one.loss(logits, target) + two.loss(logits, target))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("part", [False, True])
def test_chunks_change_nothing(layers, part):
    """Outputs and all gradients, of whole images and of drawn pixels, in float64."""
    pixels = draw_pixels(50, 12 * 10, 0, torch.tensor([[0, 3], [0, 4], [0, 5]])) if part else None
    results = []
    for chunk in (10**6, 21):
        head = made(section("segmentation", classes=3, size=(12, 10), layers=layers, chunk=chunk)).double()
        x = latents().double().requires_grad_()
        outputs = head(x, pixels=pixels)
        (outputs.sin().sum()).backward()
        results.append([outputs, x.grad, *(p.grad for p in head.parameters())])
        with torch.no_grad():
            torch.testing.assert_close(head(x, pixels=pixels), outputs)
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-10, atol=1e-12)


def test_chunks_bound_what_is_kept():
    """Bytes saved for the backward pass: chunked, not a quarter of those of all pixels at once."""

    def saved(chunk):
        head = made(section("segmentation", classes=2, size=48, chunk=chunk))
        kept = {}

        def note(t):
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            held = head(latents())
        assert held.requires_grad
        return sum(kept.values())

    assert saved(512) < saved(10**6) / 4


def test_drawn_pixels_are_those_of_the_whole_image():
    head = made(section("segmentation", classes=3, size=8))
    target = torch.randint(0, 3, (BATCH, 8, 8))
    pixels = draw_pixels(20, 64, 0, torch.tensor([[1, 5], [1, 6], [1, 7]]))
    whole, some = head(latents()), head(latents(), pixels=pixels)
    torch.testing.assert_close(some, whole.gather(1, pixels[..., None].expand(-1, -1, 3)))
    picked = gather_pixels(target, pixels)
    assert picked[1, 4] == target[1, pixels[1, 4] // 8, pixels[1, 4] % 8]
    every = torch.arange(64).expand(BATCH, -1)
    torch.testing.assert_close(head.loss(head(latents(), pixels=every), target), head.loss(whole, target))


def test_draws_are_uniform_and_a_function_of_epoch_and_sample():
    members = torch.stack([torch.full((4000,), 2), torch.arange(4000)], 1)
    drawn = draw_pixels(12, 49, 7, members)
    assert drawn.min() >= 0
    assert drawn.max() <= 48
    assert torch.equal(draw_pixels(12, 49, 7, members[100:103]), drawn[100:103])
    assert not torch.equal(draw_pixels(12, 49, 7, members + torch.tensor([1, 0])), drawn)
    counts = torch.bincount(drawn.flatten(), minlength=49)
    expected = 4000 * 12 / 49
    assert (counts - expected).abs().max() < 5 * math.sqrt(expected)
    assert torch.equal(draw_pixels(49, 49, 7, members[:2]), torch.arange(49).expand(2, -1))


def test_other_sizes_can_be_asked():
    """A pixel is the mean of its parts in the encoding, so a coarse map of few frequencies is near the mean of the fine one."""
    head = made(section("segmentation", classes=3, size=(16, 8), highest=1.0))
    fine, coarse = head(latents(), size=(16, 8)), head(latents(), size=(8, 4))
    assert head.predict(coarse, (8, 4)).shape == (BATCH, 3, 8, 4)
    image = head.predict(fine)
    assert image.shape == (BATCH, 3, 16, 8)
    torch.testing.assert_close(image[:, :, 3, 5], fine[:, 3 * 8 + 5].softmax(-1))
    pooled = F.avg_pool2d(fine.transpose(1, 2).unflatten(2, (16, 8)), 2).flatten(2).transpose(1, 2)
    assert (coarse - pooled).abs().mean() < 0.1 * (fine - fine.mean(1, keepdim=True)).abs().mean()


def test_density_loss_and_total():
    head = made(section("density", size=4))
    outputs = head(latents())
    target = torch.poisson(torch.full((BATCH, 4, 4), 2.0))
    target[0, 0, 0], target[1] = -1, math.nan
    loss = head.loss(outputs, target)
    rate = F.softplus(outputs.squeeze(-1))
    expected = F.poisson_nll_loss(rate[0, 1:], target[0].flatten()[1:], log_input=False, eps=0.0)
    assert loss[0].item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss[1] == 0
    squared = made(section("density", size=4, loss="squared"))
    assert squared.loss(outputs, target)[2].item() == pytest.approx(
        (rate[2] - target[2].flatten()).square().mean().item()
    )
    counts = head.predict(outputs)
    assert counts.min() >= 0
    fine = head.predict(head(latents(), size=(8, 8)), (8, 8))
    torch.testing.assert_close(fine.sum((1, 2)), counts.sum((1, 2)), rtol=0.1, atol=0.0)


# ---------------------------------------------------------------- masked tokens


def masked(**settings):
    return made(section("masked", **settings), query_width=6, token_values=[1, 16, 4])


def test_masked_loss_over_groups():
    head = masked()
    groups = [
        Queries(torch.randn(2, 7, 6), 16, torch.tensor([2, 0])),
        Queries(torch.randn(2, 3, 6), 1, torch.tensor([1, 2])),
    ]
    found = head(latents(4), groups)
    assert [f.shape for f in found] == [(2, 7, 16), (2, 3, 1)]
    answers = [
        Answers(torch.randn(2, 7, 16), torch.rand(2, 7, 16) < 0.5, groups[0].samples),
        Answers(torch.randn(2, 3, 1), torch.ones(2, 3, 1), groups[1].samples),
    ]
    answers[0].known[:, 0] = False
    answers[0].values[~answers[0].known] = math.nan
    loss = head.loss(found, answers, batch=4)
    per_query: list[list[float]] = [[], [], [], []]
    for f, a in zip(found, answers, strict=True):
        for row, sample in enumerate(a.samples.tolist()):
            for q in range(f.shape[1]):
                known = a.known[row, q].bool()
                if known.any():
                    per_query[sample].append((f[row, q] - a.values[row, q])[known].square().mean().item())
    assert len(per_query[2]) == 6 + 3
    assert loss.tolist() == pytest.approx([np.mean(v) if v else 0.0 for v in per_query], rel=1e-5)
    alone = head(latents(4)[groups[0].samples], [Queries(groups[0].encodings, 16)])
    torch.testing.assert_close(alone[0], found[0])


def test_masked_targets_normalised_by_footprint():
    head = masked(norm_pix=True)
    values = torch.randn(1, 2, 4) * 5 + 3
    known = torch.ones(1, 2, 4).bool()
    known[0, 1, 3] = False
    first = (values[0, 0] - values[0, 0].mean()) / values[0, 0].std()
    second = torch.zeros(4)
    second[:3] = (values[0, 1, :3] - values[0, 1, :3].mean()) / values[0, 1, :3].std()
    right = torch.stack([first, second])[None]
    assert head.loss([right], [Answers(values, known)]).item() == pytest.approx(0.0, abs=1e-6)
    single = torch.randn(1, 2, 1)
    assert head.loss([single], [Answers(single, torch.ones(1, 2, 1))]).item() == 0.0


def test_masked_refuses_tokens_of_an_unknown_size():
    with pytest.raises(UserError, match="tokens of 8 values; it was built for 1, 4, 16"):
        masked()(latents(), [Queries(torch.randn(BATCH, 2, 6), 8)])
    with pytest.raises(UserError, match="query_width"):
        build_head(section("masked"), WIDTH)


# ---------------------------------------------------------------- texts


def test_text_files(tmp_path, text_file):
    found = load_text_vectors(text_file, ["town", "water"])
    every = load_text_vectors(text_file)
    assert found.names == ("town", "water")
    np.testing.assert_array_equal(found.vectors, every.vectors[[2, 0]])
    np.save(tmp_path / "plain.npy", every.vectors)
    (tmp_path / "plain.txt").write_text("water\nforest\ntown\n")
    np.testing.assert_array_equal(load_text_vectors(tmp_path / "plain.npy").vectors, every.vectors)

    def fails(match, name="bad.npz", wanted=None, **arrays):
        np.savez(tmp_path / "bad.npz", **arrays)
        with pytest.raises(UserError, match=match) as error:
            load_text_vectors(tmp_path / name, wanted)
        assert "\n" not in str(error.value)

    good = {"names": np.array(["a", "b"]), "vectors": np.eye(2)}
    fails("no array 'vectors'", names=np.array(["a"]))
    fails("2 names for 3 vectors", **{**good, "vectors": np.eye(3)})
    fails("'a' stands there twice", **{**good, "names": np.array(["a", "a"])})
    fails("'b' is not finite", **{**good, "vectors": np.array([[1.0, 0.0], [np.nan, 1.0]])})
    fails("must be floats", **{**good, "vectors": np.ones(2)})
    np.savez(tmp_path / "good.npz", **good)
    fails("no text 'c'; it has a, b", name="good.npz", wanted=["c"])
    fails("No such file", name="absent.npz")
    fails("give a .npz", name="texts.json")
    np.savez(tmp_path / "pickled.npz", names=np.array(["a", None], dtype=object), vectors=np.eye(2))
    fails("numpy.savez", name="pickled.npz")
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 nothing")
    fails("broken.npz", name="broken.npz")
    np.save(tmp_path / "lonely.npy", np.eye(2))
    fails("lonely.txt", name="lonely.npy")


def test_texts_do_not_see_each_other(text_file):
    head = made(section("text", vectors=text_file, texts=["water", "forest", "town"]))
    scores = head(latents())
    assert scores.shape == (BATCH, 3)
    torch.testing.assert_close(head(latents(), head.texts[[2, 0]]), scores[:, [2, 0]])


def test_text_regression(text_file):
    task = section("text", task="regression", vectors=text_file, texts=["town"], mean=5.0, std=2.0)
    head = made(task)
    loss = head.loss(torch.tensor([[1.0], [0.0]]), torch.tensor([9.0, math.nan]))
    assert loss.tolist() == pytest.approx([1.0, 0.0])
    assert head.predict(torch.tensor([[1.5]])).item() == pytest.approx(8.0)
    with pytest.raises(UserError, match="mean and std"):
        build_head(section("text", task="regression", vectors=text_file, texts=["town"]), WIDTH)


# ---------------------------------------------------------------- every head


def cases(text_file):
    """Head, what its forward pass takes besides latents, and a target without a single known label, for n samples."""
    text = {"vectors": text_file, "texts": ["water", "forest", "town"]}
    number = {"vectors": text_file, "texts": ["town"], "task": "regression", "mean": 0.0, "std": 1.0}
    pixels = {"size": 4, "chunk": 13}
    return {
        "classification": (section("classification", classes=3), lambda n: torch.full((n,), -1)),
        "multilabel": (section("multilabel", classes=3), lambda n: torch.full((n, 3), -1)),
        "regression": (section("regression", mean=[1.0], std=[2.0]), lambda n: torch.full((n, 1), math.nan)),
        "segmentation": (
            section("segmentation", classes=3, loss="both", layers=2, **pixels),
            lambda n: torch.full((n, 4, 4), 255),
        ),
        "density": (section("density", **pixels), lambda n: torch.full((n, 4, 4), math.nan)),
        "text": (section("text", **text), lambda n: torch.full((n,), -1)),
        "text number": (section("text", **number), lambda n: torch.full((n,), math.nan)),
        "masked": (
            section("masked", norm_pix=True),
            lambda n: [Answers(torch.full((n, 7, 4), math.nan), torch.zeros(n, 7, 4).bool())],
        ),
    }


NAMES = ["classification", "multilabel", "regression", "segmentation", "density", "text", "text number", "masked"]


def outputs_of(head, x):
    if head.task.head == "masked":
        queries = torch.randn(len(x), 7, 6, generator=torch.Generator().manual_seed(0))
        return head(x, [Queries(queries.to(x.device), 4)])
    return head(x)


def extras(task):
    return {"query_width": 6, "token_values": [1, 4]} if task.head == "masked" else {}


@pytest.mark.parametrize("batch", [BATCH, 0])
@pytest.mark.parametrize("name", NAMES)
def test_without_labels_loss_and_all_gradients_are_zero(text_file, name, batch):
    task, nothing = cases(text_file)[name]
    head = made(task, **extras(task))
    x = latents(batch).requires_grad_()
    loss = head.loss(outputs_of(head, x), nothing(batch))
    assert loss.shape == (batch,)
    assert not loss.any()
    loss.sum().backward()
    for parameter, p in head.named_parameters():
        assert p.grad is not None, parameter
        assert not p.grad.any(), parameter
    assert x.grad is not None


@pytest.mark.parametrize("name", NAMES)
def test_bf16_weights_give_a_float32_loss(text_file, name):
    task, _ = cases(text_file)[name]
    targets = {
        "classification": torch.tensor([0, 1, 2]),
        "multilabel": torch.ones(3, 3),
        "regression": torch.ones(3, 1),
        "segmentation": torch.ones(3, 4, 4, dtype=torch.uint8),
        "density": torch.ones(3, 4, 4),
        "text": torch.tensor([0, 1, 2]),
        "text number": torch.ones(3),
        "masked": [Answers(torch.randn(3, 7, 4), torch.ones(3, 7, 4).bool())],
    }
    head = made(task, **extras(task))
    exact = head.loss(outputs_of(head, latents()), targets[name])
    for p in head.parameters():  # buffers stay float32, as under sharding
        p.data = p.data.bfloat16()
    found = outputs_of(head, latents().bfloat16())
    assert (found[0] if name == "masked" else found).dtype == torch.bfloat16
    loss = head.loss(found, targets[name])
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.1, atol=0.05)
    loss.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
    predicted = head.predict(found)
    assert (predicted[0] if name == "masked" else predicted).dtype == torch.float32


@pytest.mark.parametrize("name", NAMES)
def test_heads_are_built_on_meta_and_filled_later(text_file, name):
    task, _ = cases(text_file)[name]
    with torch.device("meta"):
        head = build_head(task, WIDTH, **extras(task))
    assert head.gathered_once
    assert not any("." not in key and key in dict(head.named_buffers()) for key in head.state_dict())
    shapes = outputs_of(head, latents().to("meta"))
    head = head.to_empty(device="cpu")
    initialise(head, 0)
    here = outputs_of(head, latents())
    there = outputs_of(made(task, **extras(task)), latents())
    if name == "masked":
        shapes, here, there = shapes[0], here[0], there[0]
    assert shapes.shape == here.shape
    assert torch.equal(here, there)


# ---------------------------------------------------------------- sections


@pytest.mark.parametrize(
    ("head", "settings", "words"),
    [
        ("classification", {"classes": 1}, "greater than or equal to 2"),
        ("classification", {"classes": 2, "class_weights": [1.0]}, "1 numbers for 2 classes"),
        ("regression", {"outputs": 1, "mean": [1.0, 2.0], "std": [1.0]}, "mean has 2 numbers for 1 outputs"),
        ("regression", {"huber_delta": 2.0}, "no effect with loss mse"),
        ("regression", {"std": [0.0]}, "greater than 0"),
        ("segmentation", {"classes": 2, "size": 8, "train_pixels": 65}, "64 pixels"),
        ("segmentation", {"classes": 2, "size": [8, 0]}, "at least 1"),
        ("segmentation", {"classes": 2, "size": 8, "features": 7}, "multiple of 2"),
        ("segmentation", {"classes": 2, "size": 8, "class_weights": [1.0]}, "1 numbers for 2 classes"),
        ("segmentation", {"classes": 2, "size": 8, "colour": 1}, "Extra inputs"),
        ("text", {"vectors": "v.npz", "texts": ["a"]}, "two or more"),
        ("text", {"vectors": "v.npz", "texts": ["a", "b"], "mean": 1.0}, "mean has no effect"),
        ("text", {"vectors": "v.npz", "texts": ["a", "b"], "task": "regression"}, "2 given"),
        ("masked", {"weight": 0.0}, "greater than 0"),
        ("painting", {}, "painting"),
    ],
)
def test_sections_refuse(head, settings, words):
    with pytest.raises(ValidationError, match=words):
        section(head, **settings)


# ---------------------------------------------------------------- learning


def trained(parameters, loss, steps, rate):
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1.0, 2 * (1 - step / steps))
        optimizer.zero_grad()
        loss(step).backward()
        optimizer.step()


def test_texts_never_trained_are_recognised():
    """Classes are all combinations of 4 attributes, 4 of the 16 are held out; latents carry the attributes with noise."""
    g = torch.Generator().manual_seed(0)
    attributes = (((torch.arange(16)[:, None] >> torch.arange(4)) & 1) * 2 - 1).float()
    order = torch.randperm(16, generator=g)
    held, seen = attributes[order[:4]], attributes[order[4:]]
    start, basis = torch.randn(4, WIDTH, generator=g), torch.randn(4, 4, WIDTH, generator=g) / 2

    def carrying(chosen):
        signal = start + torch.einsum("na,amd->nmd", chosen, basis)
        return signal + 0.3 * torch.randn(signal.shape, generator=g)

    task = section("text", vectors="given", texts=["one", "two"])
    head = Text(WIDTH, task, TextVectors(tuple(map(str, range(12))), seen.numpy()))
    initialise(head, 0)

    def loss(step):
        labels = torch.randint(0, 12, (64,), generator=g)
        return head.loss(head(carrying(seen[labels])), labels).mean()

    trained(head.parameters(), loss, steps=150, rate=5e-3)
    labels = torch.randint(0, 4, (400,), generator=g)
    with torch.no_grad():
        found = head(carrying(held[labels]), held).argmax(1)
    accuracy = (found == labels).float().mean().item()
    assert accuracy > 0.6  # chance is 0.25, with a standard error of 0.02


@pytest.mark.parametrize("kind", ["segmentation", "density"])
def test_pixels_of_diagonal_stripes_are_learned(kind):
    """Latents are free numbers of each sample; each step asks for a fifth of the pixels, the whole image is judged."""
    side, places = 16, (torch.arange(16) + 0.5) / 16
    turns = torch.tensor([[2.0, 1.0], [1.5, -2.0], [-1.0, 2.5]])  # cycles a side along x and y
    waves = turns[:, :1, None] * places[None, None, :] + turns[:, 1:, None] * places[None, :, None]
    stripes = (waves.remainder(1) < 0.5).long()
    classes = {"classes": 2, "loss": "both"} if kind == "segmentation" else {}
    head = made(section(kind, size=side, highest=4.0, layers=2, **classes))
    free = latents().requires_grad_()
    target = stripes if kind == "segmentation" else stripes * 3

    def loss(step):
        members = torch.stack([torch.full((BATCH,), step), torch.arange(BATCH)], 1)
        pixels = draw_pixels(50, side * side, 0, members)
        return head.loss(head(free, pixels=pixels), gather_pixels(target, pixels)).mean()

    trained([*head.parameters(), free], loss, steps=120, rate=1e-2)
    with torch.no_grad():
        found = head.predict(head(free))
    if kind == "segmentation":
        assert (found.argmax(1) == stripes).float().mean() > 0.9  # one class for all: 0.5
    else:
        assert (found - target).square().mean() < 0.5  # the mean for all: 2.25
        assert found.sum().item() == pytest.approx(target.sum().item(), rel=0.1)
