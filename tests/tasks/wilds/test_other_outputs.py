"""GlobalWheat and Py150: boxes and tokens in place of classes."""

from __future__ import annotations

import ast
import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from selfbench.methods.baselines.erm import Erm
from selfbench.methods.baselines.supervised import Supervised
from selfbench.suite.bundle import BundleFolder
from selfbench.suite.data import Data
from selfbench.suite.errors import DataMissing, MethodError
from selfbench.tasks.wilds import compat
from selfbench.tasks.wilds.boxes import DETECTIONS, NOTHING, Detector, check_boxes, faster_rcnn, padded
from selfbench.tasks.wilds.py150 import NextToken
from selfbench.tasks.wilds.task import OFFICIAL, WildsTask

Bundles = Callable[[str], BundleFolder]
Miniature = Callable[[str], WildsTask]
NAMES = ["globalwheat", "py150"]


def stock(root: Path, name: str, unlabeled: bool = False) -> Any:
    with compat.usable() as wilds, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return wilds.get_dataset(name, root_dir=str(root / "wilds"), download=False, unlabeled=unlabeled)


def test_boxes_are_those_of_the_package(wilds_data: Path, bundles: Bundles, miniature: Miniature) -> None:
    task, bundle, dataset = miniature("globalwheat"), bundles("globalwheat"), stock(wilds_data, "globalwheat")
    split, private = task.split(bundle, 0), bundle.private()
    for ours, theirs in {"labeled": "train", **OFFICIAL}.items():
        subset, indices = dataset.get_subset(theirs), getattr(split, ours)
        assert len(subset) == len(indices) > 0
        for row, own in zip(subset.indices, private["labels"][indices], strict=True):
            np.testing.assert_array_equal(own[own[:, 0] >= 0], dataset.y_array[row]["boxes"].numpy())
        np.testing.assert_array_equal(private["metadata"][indices], subset.metadata_array.numpy())
    pool = stock(wilds_data, "globalwheat", unlabeled=True).get_subset("test_unlabeled")
    assert len(pool) == len(split.unlabeled) > 0
    np.testing.assert_array_equal(split.unlabeled_domains, pool.metadata_array[:, 0].numpy())


def test_tokens_are_those_of_the_package(wilds_data: Path, bundles: Bundles, miniature: Miniature) -> None:
    task, bundle, dataset = miniature("py150"), bundles("py150"), stock(wilds_data, "py150")
    split = task.split(bundle, 0)
    for ours, theirs in {"labeled": "train", **OFFICIAL}.items():
        subset, indices = dataset.get_subset(theirs), getattr(split, ours)
        assert len(subset) == len(indices) > 0
        expected = torch.stack([subset[row][0] for row in range(len(subset))])
        assert torch.equal(task.inputs(bundle.public(), indices), expected)
        rows, y = task.labels(bundle.private(), indices), subset.y_array.numpy()
        np.testing.assert_array_equal(np.where(rows[:, 0] < 0, np.nan, rows[:, 0]), y)
        np.testing.assert_array_equal(rows[:, 1], subset.metadata_array[:, 1:-1].numpy())


@pytest.mark.parametrize("name", NAMES)
def test_nothing_that_reaches_a_method_knows_what_is_hidden(
    miniatures: Any, miniature: Miniature, bundles: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Boxes, or which tokens count and of what kind they are."""
    task, first = miniature(name), bundles(name)
    miniatures.ALL[name](tmp_path / "wilds", hidden=1)
    monkeypatch.setenv("SELFBENCH_DATA", str(tmp_path))
    second = miniature(name).build(Data(tmp_path))
    assert set(first.public()) == set(second.public)
    for part, array in first.public().items():
        if name == "py150":
            # The last token of a program is the class of the one before it, and seen by nobody.
            array, second.public[part] = array[:, :-1], second.public[part][:, :-1]
        np.testing.assert_array_equal(array, second.public[part])
    split = task.split(first, 0)
    again = task.split(type("Folder", (), {"private": lambda self: second.private, "facts": second.facts})(), 0)
    test = split.test
    assert (task.labels(first.private(), test) != task.labels(second.private, test)).any()
    for part in ("labeled", *OFFICIAL, "unlabeled", "labels", "labeled_domains", "unlabeled_domains"):
        np.testing.assert_array_equal(getattr(split, part), getattr(again, part))


def found(n: int, boxes: list[list[tuple[float, ...]]]) -> np.ndarray:
    """Detections (n, 100, 6) of boxes with scores."""
    result = np.zeros((n, DETECTIONS, 6), np.float32)
    for row, own in enumerate(boxes):
        for place, box in enumerate(own):
            result[row, place] = (*box, 1)
    return result


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    inner = max(width, 0) * max(height, 0)
    return inner / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner)


def detection_accuracy(true: np.ndarray, sealed: np.ndarray) -> float:
    """From its definition: every predicted box is given to the true one that it covers most."""
    predicted = [box[:4] for box in sealed if box[5] > 0 and box[4] > 0.5]
    if not len(true):
        return float(not predicted)
    if not predicted:
        return 0.0
    matches = []
    for box in predicted:
        overlaps = [overlap(other, box) for other in true]
        matches.append(int(np.argmax(overlaps)) if max(overlaps) >= 0.5 else -1)
    hit = len({match for match in matches if match >= 0})
    false = matches.count(-1) + (len(matches) - matches.count(-1) - hit)
    return hit / (hit + false + len(true) - hit)


def test_detection_accuracy_equals_its_definition(at_home: Path, bundles: Bundles, miniature: Miniature) -> None:
    task, bundle = miniature("globalwheat"), bundles("globalwheat")
    draw = np.random.default_rng(0)
    for part in OFFICIAL:
        labels = task.labels(bundle.private(), getattr(task.split(bundle, 0), part))
        boxes = [
            [(*(box + draw.integers(-6, 7, 4)), draw.choice([0.3, 0.9])) for box in own[own[:, 0] >= 0]]
            + [(1.0, 1.0, 9.0, 9.0, 0.8)] * int(draw.integers(0, 2))
            for own in labels[:, 2:]
        ]
        sealed = found(len(labels), boxes)
        scores = task.score(sealed, labels)
        single = np.array(
            [detection_accuracy(own[own[:, 0] >= 0], row) for own, row in zip(labels[:, 2:], sealed, strict=True)]
        )
        sessions = labels[:, 0, 0]
        by_session = [single[sessions == session].mean() for session in np.unique(sessions)]
        assert scores.metrics["mean_domain_detection_accuracy"] == pytest.approx(np.mean(by_session), abs=1e-5)
        assert scores.metrics["detection_accuracy"] == pytest.approx(single.mean(), abs=1e-5)
        assert sorted(scores.groups["detection_accuracy"].values()) == pytest.approx(sorted(by_session), abs=1e-5)


def test_accuracies_of_tokens_equal_their_definition(at_home: Path, bundles: Bundles, miniature: Miniature) -> None:
    task, bundle = miniature("py150"), bundles("py150")
    draw = np.random.default_rng(0)
    for part in OFFICIAL:
        rows = task.labels(bundle.private(), getattr(task.split(bundle, 0), part))
        y, kind = rows[:, 0], rows[:, 1]
        predicted = np.where(draw.random(y.shape) < 0.6, y, 3).astype(np.int32)
        scores = task.score(predicted, rows)
        hit = predicted == y
        named = (kind == 0) | (kind == 1)
        assert scores.metrics["class_method_accuracy"] == pytest.approx(hit[named].mean(), abs=1e-5)
        assert scores.metrics["accuracy"] == pytest.approx(hit[y >= 0].mean(), abs=1e-5)
        assert scores.groups["accuracy"]["keyword"] == pytest.approx(hit[kind == 3].mean(), abs=1e-5)
        assert set(scores.groups["accuracy"]) == {
            "class", "method", "punctuation", "keyword", "builtin", "literal", "other_identifier",
        }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_run_and_its_files(
    at_home: Path, bundles: Bundles, miniature: Miniature, play: Callable[..., Any], name: str
) -> None:
    task, bundle = miniature(name), bundles(name)
    outcome = play(Supervised(), task, bundle, limit=200.0, seed=1)
    assert outcome.predictions_sha256 == play(Erm(), task, bundle, limit=200.0, seed=1).predictions_sha256
    with np.load(outcome.predictions) as kept:
        predicted = dict(kept)
    assert set(predicted) == set(OFFICIAL)
    rows = task.labels(bundle.private(), task.split(bundle, 1).test)
    assert task.score(task.unpredicted(predicted["test"]), rows).metrics == outcome.metrics
    files = task.submission(1, predicted)
    assert len(files) == 4
    dataset = stock(at_home, name)
    subset = dataset.get_subset("test")
    if name == "py150":
        lines = files["py150/py150_split:test_seed:1_pred.csv"].splitlines()
        given: Any = torch.tensor([ast.literal_eval(line) for line in lines])
        true: Any = subset.y_array
    else:
        given = torch.load(io.BytesIO(files["globalwheat/globalwheat_split:test_seed:1_pred.pth"]))
        true = [dataset.y_array[row] for row in subset.indices]
    with compat.usable():
        results = dataset.eval(given, true, subset.metadata_array)[0]
    for theirs, ours in task.official_metrics.items():
        assert outcome.metrics[ours] == pytest.approx(float(results[theirs]), abs=1e-6)


@pytest.mark.parametrize(
    "text", ["1 2 3 4 5", "1 2 3;1 2 3 4", "1.5 2 3 4", "-1 2 3 4", "__import__('os')", "", "1 2 3 4;"]
)
def test_untrusted_boxes_never_reach_the_package(tmp_path: Path, text: str) -> None:
    path = tmp_path / "table.csv"
    pd.DataFrame({"image_name": "w.png", "BoxesString": ["no_box", "1 2 3 4;5 6 7 8", text], "domain": 0}).to_csv(
        path, index=False
    )
    with pytest.raises(DataMissing) as caught:
        check_boxes(path)
    assert f"{path}, row 3: 'BoxesString' is {text!r}" in str(caught.value)
    assert "Unpack the published archive again" in str(caught.value)


def test_boxes_that_changed_after_the_build_are_refused_by_scoring_and_never_evaluated(
    miniatures: Any, miniature: Miniature, bundles: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tables are read again where a run is scored, and where its files for the leaderboard are checked."""
    task, bundle = miniature("globalwheat"), bundles("globalwheat")
    labels = task.labels(bundle.private(), task.split(bundle, 0).test)
    outputs = np.zeros((len(labels), DETECTIONS, 6), np.float32)
    miniatures.globalwheat(tmp_path / "wilds")
    monkeypatch.setenv("SELFBENCH_DATA", str(tmp_path))
    path, mark = tmp_path / "wilds" / "globalwheat_v1.1" / "official_val.csv", tmp_path / "evaluated"
    table = pd.read_csv(path)
    table.loc[2, "BoxesString"] = f"open('{mark}','w').write('1') 2 3 4"
    table.to_csv(path, index=False)
    with pytest.raises(DataMissing, match=r"row 3: 'BoxesString' is \"open.*Unpack the published archive again"):
        task.score(outputs, labels)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda rows: [*rows[:-1], [*rows[-1][:-1], "os"]], "row 9: 'os', expected whole numbers"),
        (lambda rows: [*rows[:-1], [*rows[-1][:-1], 30]], "row 9: 30, expected whole numbers from 0 to 29"),
        (lambda rows: [*rows[:-1], rows[-1][:-1]], "rows of 2 lengths"),
        (lambda rows: 7, "cannot be read as lists"),
    ],
)
def test_tokens_out_of_range_are_named(
    miniatures: Any, miniature: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, expected: str
) -> None:
    monkeypatch.setenv("SELFBENCH_DATA", str(tmp_path))
    miniatures.py150(tmp_path / "wilds")
    path = tmp_path / "wilds" / "py150_v1.0" / "processed" / "OODval_input.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(DataMissing) as caught:
        miniature("py150").build(Data(tmp_path))
    assert str(path) in str(caught.value)
    assert expected in str(caught.value)


def test_outputs_of_another_form_are_refused(miniature: Miniature) -> None:
    with pytest.raises(MethodError, match=r"'mine' returned \(2, 7\) for 2 pictures; expected \(2, 100, 6\)"):
        miniature("globalwheat").sealed(torch.zeros(2, 7), 2, "mine")
    with pytest.raises(MethodError, match=r"'mine' returned list for 2 programs"):
        miniature("py150").sealed([], 2, "mine")


def test_masked_tokens_have_no_loss(miniature: Miniature) -> None:
    logits = torch.randn(2, 3, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = torch.tensor([[4, -100, 2], [-100, -100, 9]], dtype=torch.int32)
    expected = -np.mean(
        [logits[0, 0].log_softmax(0)[4], logits[0, 2].log_softmax(0)[2], logits[1, 2].log_softmax(0)[9]]
    )
    assert float(miniature("py150").loss(logits, targets)) == pytest.approx(expected, abs=1e-12)


def test_the_published_language_model_is_causal() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    net = NextToken(GPT2LMHeadModel(GPT2Config(vocab_size=30, n_positions=16, n_embd=8, n_layer=2, n_head=2))).eval()
    ids = torch.randint(0, 30, (2, 10))
    changed = torch.cat([ids[:, :6], 29 - ids[:, 6:]], dim=1)
    torch.testing.assert_close(net(ids)[:, :6], net(changed)[:, :6])
    assert not torch.allclose(net(ids)[:, 6:], net(changed)[:, 6:])


def test_a_detector_learns_from_boxes_and_returns_detections() -> None:
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
    )
    net = Detector(FasterRCNN(backbone, num_classes=2, min_size=64, max_size=64, rpn_post_nms_top_n_train=20))
    images = torch.rand(2, 3, 64, 64)
    targets = torch.from_numpy(padded([np.array([[4, 4, 30, 30], [9, 9, 9, 20]]), np.zeros((0, 4))], 3))
    loss = net.train()(images, targets)
    assert loss.dim() == 0
    loss.backward()
    assert net.net.rpn.head.cls_logits.weight.grad.abs().sum() > 0
    with torch.no_grad():
        sealed = net.eval()(images)
    assert sealed.shape == (2, DETECTIONS, 6)
    assert not net.training


def test_the_published_detector() -> None:
    net = faster_rcnn(side=64)
    # torchvision's with 91 classes has 41,755,286 parameters, frozen statistics apart; a class takes 5 x 1025.
    assert sum(parameter.numel() for parameter in net.parameters()) == 41_755_286 - 89 * 5 * 1025


def test_a_detector_learns_from_its_own_sure_boxes(miniature: Miniature) -> None:
    """Of three pictures one has two sure boxes, one has one, and one has none: it is left out."""
    task = miniature("globalwheat")
    found = torch.zeros(3, DETECTIONS, 6)
    found[:, :3, :4] = torch.arange(36.0).view(3, 3, 4)
    found[:, :3, 4] = torch.tensor([[0.9, 0.6, 0.1], [0.5, 0.4, 0.3], [0.2, 0.2, 0.1]])
    found[:, :3, 5] = 1.0
    boxes = task.targets(found)
    assert boxes.shape == (3, DETECTIONS, 4)
    assert (boxes[:, :, 0] >= 0).sum(dim=1).tolist() == [2, 1, 0]
    assert torch.equal(boxes[0, :2], found[0, :2, :4])
    assert bool((boxes[0, 2:] == NOTHING).all())

    class Given(nn.Module):
        """Finds the boxes above; its loss is the mean of pictures and boxes, so that what it was given shows."""

        def forward(self, images: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
            if targets is None:
                return found
            self.given = images, targets
            return images.mean()

    model, images = Given(), torch.rand(3, 3, 4, 4, requires_grad=True)
    loss = task.self_supervised(model, images, 0.5)
    assert torch.equal(model.given[0], images[:2])
    assert torch.equal(model.given[1], boxes[:2])
    assert loss.item() == pytest.approx(3 / 9 * images[:2].mean().item())
    assert loss.requires_grad
    assert task.self_supervised(model, images, 0.95).item() == 0.0


def test_boxes_that_are_all_unsure_leave_the_labelled_loss(at_home: Path, miniature: Miniature) -> None:
    task = miniature("globalwheat")
    model = task.model()
    pictures, boxes = torch.rand(2, 3, 16, 16), torch.tensor([[[1.0, 1, 9, 9]], [[2.0, 2, 8, 8]]]).repeat(1, 2, 1)
    total = task.supervised(model, pictures, boxes) + task.self_supervised(model, pictures, 0.95)
    total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
