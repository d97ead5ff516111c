"""Augmentations, texts against the tokeniser, networks against their published files."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from selfbench.suite.bundle import BundleFolder
from selfbench.suite.errors import DataMissing, GateError
from selfbench.suite.protocols.features import forward_with_features
from selfbench.tasks.images.color_augmentations import rand_augment
from selfbench.tasks.streams.models.libraries import torchvision_net
from selfbench.tasks.wilds import networks
from selfbench.tasks.wilds.augmentations import fixmatch_augment, flip, grey_square, quarter_turn
from selfbench.tasks.wilds.task import WildsTask

SIDE = 40


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    draw = np.random.default_rng(0)
    coarse = draw.integers(20, 230, (4, 5, 5, 3), dtype=np.uint8)
    noise = draw.integers(0, 25, (4, SIDE, SIDE, 3), dtype=np.uint8)
    return [Image.fromarray(np.kron(a, np.ones((8, 8, 1), np.uint8)) + b) for a, b in zip(coarse, noise, strict=True)]


def tensor(pictures: list[Image.Image]) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2) / 255.0


def test_the_grey_square_is_where_it_was_drawn() -> None:
    images = torch.zeros(1, 3, 20, 20)
    covered = grey_square(images, torch.tensor([0.4]), torch.tensor([0.5]), torch.tensor([0.0]))[0, 0] > 0
    assert covered[0:9, 6:15].all()
    assert covered.sum() == 81


def test_the_strong_view_is_the_pool_of_fixmatch_under_a_grey_square(pictures: list[Image.Image]) -> None:
    images, generator = tensor(pictures), torch.Generator().manual_seed(4)
    changed = rand_augment(images, generator)
    size, x, y = torch.rand(3, len(images), generator=generator)
    expected = grey_square(changed, 0.5 * size, x, y)
    mine = fixmatch_augment(images, torch.Generator().manual_seed(4))
    assert torch.equal(mine, expected)
    assert not torch.equal(expected, changed)


def test_views_depend_on_the_generator_alone(pictures: list[Image.Image]) -> None:
    images = tensor(pictures).repeat(16, 1, 1, 1)
    for view in (flip, quarter_turn, fixmatch_augment):
        first, same, other = (view(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
        assert torch.equal(first, same)
        assert not torch.equal(first, other)
        assert first.shape == images.shape
        assert 0.0 <= float(first.min()) <= float(first.max()) <= 1.0
    turned = quarter_turn(images, torch.Generator().manual_seed(0))
    kinds = {
        next(k for k in range(4) if torch.equal(turned[row], images[row].rot90(k, (1, 2))))
        for row in range(len(images))
    }
    assert kinds == {0, 1, 2, 3}
    flipped = flip(images, torch.Generator().manual_seed(0))
    assert 20 < sum(not torch.equal(a, b) for a, b in zip(flipped, images, strict=True)) < 44


@pytest.mark.parametrize("name", ["civilcomments", "amazon"])
def test_texts_are_the_tokens_of_the_package_s_texts(
    wilds_data: Path, bundles: Callable[[str], BundleFolder], miniature: Callable[[str], WildsTask], name: str
) -> None:
    from tokenizers import Tokenizer

    task, public = miniature(name), bundles(name).public()
    tokenizer = Tokenizer.from_file(str(wilds_data / "distilbert-base-uncased" / "tokenizer.json"))
    dataset = task._load(wilds_data / "wilds")
    test = task.split(bundles(name), 0).test[:5]
    texts = dataset.get_subset("test")
    ids = task.inputs(public, test)
    assert ids.shape == (5, task.length)
    for row in range(5):
        expected = tokenizer.encode(texts[row][0]).ids
        assert ids[row, : len(expected)].tolist() == expected
        assert not ids[row, len(expected) :].any()
    assert task.inputs(public, test[:0]).shape == (0, task.length)


def test_a_text_longer_than_the_limit_is_cut(
    at_home: Path, bundles: Callable[[str], BundleFolder], miniature: Callable[[str], WildsTask]
) -> None:
    from selfbench.suite.data import Data

    task = miniature("civilcomments")
    type(task).length = 4
    whole, cut = bundles("civilcomments").public(), task.build(Data(at_home)).public
    assert np.diff(cut["offsets"]).max() == 4
    assert np.diff(whole["offsets"]).max() > 4
    assert task.inputs(cut, np.arange(3)).shape == (3, 4)


def test_distilbert_does_not_see_padding(at_home: Path) -> None:
    net = networks.distilbert(2, "distilbert-base-uncased").eval()
    ids = torch.tensor([[2, 5, 6, 3, 0, 0], [2, 7, 3, 0, 0, 0]])
    logits = net(ids)
    assert logits.shape == (2, 2)
    torch.testing.assert_close(net(ids[1:, :3]), logits[1:])
    weights = networks.read_weights(at_home / "distilbert-base-uncased" / "model.safetensors")
    loaded = net.net.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in weights.items() if key.startswith("distilbert."))


@pytest.fixture
def texts() -> Tensor:
    """Forty texts of 1 to 400 tokens, most of them short, in no order; the last one is empty."""
    draw = torch.Generator().manual_seed(3)
    lengths = (torch.randn(40, generator=draw) + 3).exp().long().clamp(1, 400)
    lengths[7], lengths[-1] = 400, 0
    ids = torch.randint(4, 16, (40, 512), generator=draw)
    return ids.masked_fill(torch.arange(512) >= lengths[:, None], networks.PAD)


def test_groups_hold_each_text_once_with_little_padding(texts: Tensor) -> None:
    groups = networks.length_groups(texts)
    lengths = (texts != networks.PAD).sum(dim=1)
    assert torch.equal(torch.cat([group.rows for group in groups]).sort().values, torch.arange(40))
    assert len(groups) > 3
    for group in groups:
        assert group.ids.shape[1] == max(1, int(lengths[group.rows].max()))
        assert torch.equal(group.ids, texts[group.rows, : group.ids.shape[1]])
        assert torch.equal(group.shown, group.ids != networks.PAD)
    computed = sum(group.ids.numel() for group in groups)
    assert computed < 1.6 * int(lengths.sum()) < 0.3 * len(texts) * int(lengths.max())
    for few in (texts[:0], texts[:1], texts[-1:]):
        assert [len(group.rows) for group in networks.length_groups(few)] == [len(few)]


def test_logits_and_gradients_do_not_depend_on_the_groups(
    at_home: Path, texts: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against `transformers`' own forward on texts that are all padded to the limit."""
    net = networks.distilbert(3, "distilbert-base-uncased").double().eval()
    theirs: Any = copy.deepcopy(net.net)
    expected = theirs(input_ids=texts, attention_mask=(texts != networks.PAD).long()).logits
    logits = net(texts)
    known = slice(0, -1)  # Of the empty text, theirs attends to nothing at all.
    torch.testing.assert_close(logits[known], expected[known], rtol=0, atol=1e-12)
    classes = torch.arange(39) % 3
    nn.functional.cross_entropy(expected[known], classes).backward()
    nn.functional.cross_entropy(logits[known], classes).backward()
    for (name, mine), other in zip(net.net.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=0, atol=1e-12, msg=name)


def test_features_are_those_of_the_whole_batch(at_home: Path, texts: Tensor) -> None:
    """Methods read what the classifier reads: it must see all groups at once, in the order of the batch."""
    net = networks.distilbert(3, "distilbert-base-uncased").eval()
    logits, features = forward_with_features(net, texts)
    assert features is not None
    assert features.shape == (40, 8)
    torch.testing.assert_close(net.net.classifier(features), logits)


def test_hidden_tokens_are_predicted_as_by_the_published_model(
    at_home: Path, bundles: Callable[[str], BundleFolder], miniature: Callable[[str], WildsTask], texts: Tensor
) -> None:
    """Body and head with the published weights; what trains the head's body trains the classifier's."""
    from transformers import DistilBertForMaskedLM

    task = miniature("amazon")
    tokens = task.vocabulary()
    assert (tokens.size, tokens.mask, tokens.special) == (17, 16, (0, 1, 2, 3, 16))
    classifier = task.model().eval()
    head = task.language_model(classifier).eval()
    theirs = DistilBertForMaskedLM.from_pretrained(at_home / "distilbert-base-uncased").eval()
    ids = task.inputs(bundles("amazon").public(), np.arange(6))
    places = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    places &= ids != 0
    with torch.no_grad():
        expected = theirs(input_ids=ids, attention_mask=(ids != 0).long()).logits[places]
        torch.testing.assert_close(head(ids, places), expected, rtol=1e-5, atol=1e-6)
        assert head(ids, torch.zeros_like(places)).shape == (0, 17)
        places = torch.rand(texts.shape, generator=torch.Generator().manual_seed(0)) < 0.2
        places &= texts != 0
        expected = theirs(input_ids=texts[:-1], attention_mask=(texts[:-1] != 0).long()).logits[places[:-1]]
        torch.testing.assert_close(head(texts, places), expected, rtol=1e-5, atol=1e-6)
    assert head.body is classifier.net.distilbert


def published(net: nn.Module) -> dict[str, Tensor]:
    """The state as the published file of DenseNet-121 names it, without the counters that it lacks."""
    import re

    old = re.compile(r"(denselayer\d+\.(?:norm|conv))([12]\.)")
    return {old.sub(r"\1.\2", key): value for key, value in net.state_dict().items() if "num_batches" not in key}


def test_published_weights_but_the_classifier_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFBENCH_DATA", str(tmp_path))
    arguments: Any = ("densenet121", 62, "densenet121-imagenet", "densenet121-a639ec97.pth")
    with pytest.raises(DataMissing, match=r"densenet121-a639ec97\.pth is missing"):
        networks.pretrained(*arguments)
    source = torchvision_net("densenet121")
    (tmp_path / "densenet121-imagenet").mkdir()
    file = tmp_path / "densenet121-imagenet" / "densenet121-a639ec97.pth"
    torch.save(published(source), file)
    with pytest.raises(GateError, match=r"densenet121-a639ec97\.pth has the sha256 [0-9a-f]+, expected a639ec97"):
        networks.pretrained(*arguments)
    monkeypatch.setattr(networks, "check_digest", lambda path, digits: None)
    net = networks.pretrained(*arguments)
    for key, value in source.features.state_dict().items():  # type: ignore[union-attr]
        assert torch.equal(net.features.state_dict()[key], value)  # type: ignore[union-attr]
    assert net.classifier.out_features == 62
    torch.save({key: value for key, value in published(source).items() if "denselayer3" not in key}, file)
    with pytest.raises(GateError, match=r"densenet121-a639ec97\.pth does not hold the weights"):
        networks.pretrained(*arguments)


def test_pictures_are_standardised_one_by_one() -> None:
    net = networks.Standardized(nn.Identity())
    images = torch.rand(3, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    images[1, 2] = 0.4
    out = net(images)
    assert not out[1, 2].abs().max() > 1e-6
    assert float(out[0, 0].std()) == pytest.approx(1.0, abs=1e-5)
    torch.testing.assert_close(net(images[:1]), out[:1])
