"""The task `sentiment-domains`: on miniature files of the same form, and on the real ones where they lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from selfbench.suite import registry
from selfbench.suite.bundle import Bundle, BundleFolder, write_bundle
from selfbench.suite.data import Data
from selfbench.suite.errors import DataMissing
from selfbench.suite.places import data_folder
from selfbench.tasks.text import sentiment_domains
from selfbench.tasks.text.sentiment_domains import DOMAINS, FILES, SentimentDomains, choose, read_domain


class Folder:
    """What `read_domain` asks of `Data`, without digests."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def file(self, dataset: str, member: str) -> Path:
        assert dataset == "vader-sentiment"
        return self.root / member


def write(root: Path, domain: str, lines: list[str]) -> Folder:
    (root / FILES[domain]).write_bytes("\r\n".join(lines).encode())
    return Folder(root)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentiment_domains, "PER_DOMAIN", 60)
    monkeypatch.setattr(sentiment_domains, "TEST_PER_DOMAIN", 20)


def rated(domain: str, documents: int = 40, sentences: int = 3) -> list[tuple[str, float, str]]:
    """Ratings of 1 and -1 in turn, and one within the dead zone in each document."""
    rows = []
    for document in range(documents):
        for sentence in range(sentences):
            rows.append((str(document), (-1.0) ** (document + sentence), f"{domain} {document} {sentence}"))
        rows.append((str(document), 0.4, f"{domain} {document} lukewarm"))
    return rows


def test_rows_are_id_rating_and_text(tmp_path: Path) -> None:
    data = write(tmp_path, "editorials", ["1_1\t0.4\tA plan.", "1_2\t-1.25\tA\ttab.", "12_1\t2\tGood."])
    assert read_domain(data, "editorials") == [  # type: ignore[arg-type]
        ("1", 0.4, "A plan."),
        ("1", -1.25, "A\ttab."),
        ("12", 2.0, "Good."),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2\t4.1\ttext", "row 2: 'rating' is '4.1', expected a number from -4 to 4"),
        ("2\tgood\ttext", "row 2: 'rating' is 'good', expected a number"),
        ("2\t1.0", r"row 2: it has no column 'text' \(2 of 3 columns\)"),
        ("2\t1.0\t ", "row 2: 'text' is empty"),
        ("1_1\t1.0\ttext", "row 2: 'id' is '1_1' as in row 1"),
        ("one\t1.0\ttext", "row 2: 'id' is 'one', expected a number or two numbers"),
        ("2_\u0101\t1.0\ttext", "row 2: 'id' is"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, line: str, message: str) -> None:
    data = write(tmp_path, "tweets", ["1_1\t1.0\tgood", line])
    with pytest.raises(DataMissing, match=rf"tweets_GroundTruth\.txt, {message}"):
        read_domain(data, "tweets")  # type: ignore[arg-type]


@pytest.mark.usefixtures("small")
def test_texts_are_chosen_by_document_without_repeats_and_the_dead_zone() -> None:
    domains = {name: rated(name) for name in DOMAINS}
    shared = domains["tweets"][0] = ("0", 1.0, "The same text")
    domains["editorials"][4] = ("1", -1.0, "the  SAME text")
    parts, facts = choose(domains)
    assert (parts, facts) == choose(domains)
    assert facts["left_out"]["tweets"] == {"repeated": 1, "in_dead_zone": 40}
    for name, part in zip(DOMAINS, parts, strict=True):
        assert len(part) == 60
        texts = [text for text, _ in part]
        assert len(set(texts)) == 60
        assert shared[2] not in texts
        assert not any("lukewarm" in text for text in texts)
        test, rest = ({text.rsplit(" ", 1)[0] for text in group} for group in (texts[:20], texts[20:]))
        assert not test & rest, "a document stands on both sides"
        sign = {text: rating for _, rating, text in domains[name]}
        assert all(label == (sign[text] > 0) for text, label in part)


@pytest.mark.usefixtures("small")
def test_too_few_texts_are_said() -> None:
    with pytest.raises(DataMissing, match="film reviews: 29 texts are left, 60 are needed"):
        choose({name: rated(name, documents=10) for name in DOMAINS})


def test_the_score_is_the_error_on_the_worst_domain() -> None:
    task = SentimentDomains()
    rows = task.labels(
        {"labels": np.array([0, 1, 1, 0, 1]), "domains": np.array([2, 2, 3, 3, 3])}, np.array([0, 1, 2, 3, 4])
    )
    scores = task.score(np.eye(2)[[0, 1, 0, 0, 1]], rows)
    assert scores.metrics["worst_group_error"] == pytest.approx(1 / 3)
    assert scores.metrics["accuracy"] == pytest.approx(0.8)
    assert scores.groups["error"] == {"tweets": 0.0, "editorials": pytest.approx(1 / 3)}
    assert scores.groups["accuracy"] == {"tweets": 1.0, "editorials": pytest.approx(2 / 3)}


def test_it_grants_domains_and_has_features_to_align() -> None:
    entry = registry.get("task", "sentiment-domains")
    assert entry.load() is SentimentDomains
    assert {"domains", "real-inputs", "strong-augmentation", "oracle-labels"} == set(entry.options["grants"])
    assert entry.options["metric"] == "worst_group_error"
    model = SentimentDomains().model()
    assert model(torch.ones(3, 384)).shape == (3, 2)
    assert sum(parameter.numel() for parameter in model[:-1].parameters()) == 384 * 128 + 128


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> BundleFolder:
    """The real texts with numbers in place of vectors: encoding them takes a minute."""
    data = Data(data_folder())
    if not data.present("vader-sentiment"):
        pytest.skip("needs the data set vader-sentiment: `selfbench data fetch vader-sentiment`")

    def no_vectors(data: object, texts: list[str], length: int, tell: Callable[[str], None]) -> object:
        return {"vectors": np.arange(len(texts), dtype=np.float32)[:, None]}, {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sentiment_domains, "encode", no_vectors)
        return write_bundle(tmp_path_factory.mktemp("bundle") / "sentiment", SentimentDomains().build(data))


def test_the_real_domains(real: BundleFolder) -> None:
    labels, domains = real.private()["labels"], real.private()["domains"]
    assert np.array_equal(np.bincount(domains), [2600] * 4)
    shares = [labels[domains == domain].mean() for domain in range(4)]
    assert np.allclose(shares, [0.49, 0.59, 0.69, 0.40], atol=0.01)
    assert real.facts["left_out"]["editorials"] == {"repeated": 145, "in_dead_zone": 2164}


def test_the_split_is_as_declared(real: BundleFolder) -> None:
    task, private = SentimentDomains(), real.private()
    split, other = task.split(real, 0), task.split(real, 1)
    of = {
        name: np.bincount(private["domains"][getattr(split, name)], minlength=4).tolist()
        for name in ("labeled", "unlabeled", "validation", "test", "source_validation", "source_test")
    }
    assert of == {
        "labeled": [1400, 1400, 0, 0],
        "unlabeled": [0, 0, 1550, 1550],
        "validation": [0, 0, 50, 50],
        "test": [0, 0, 1000, 1000],
        "source_validation": [200, 200, 0, 0],
        "source_test": [1000, 1000, 0, 0],
    }
    every = np.concatenate([getattr(split, name) for name in of])
    assert np.array_equal(np.sort(every), np.arange(4 * 2600))
    assert np.array_equal(split.labels, private["labels"][split.labeled])
    assert np.array_equal(split.labeled_domains, private["domains"][split.labeled])
    assert np.array_equal(split.unlabeled_domains, private["domains"][split.unlabeled])
    assert np.array_equal(split.test, other.test)
    assert not np.array_equal(split.labeled, other.labeled)


def test_hidden_labels_decide_nothing(real: BundleFolder, tmp_path: Path) -> None:
    task = SentimentDomains()
    split, private = task.split(real, 0), real.private()
    labels = private["labels"].copy()
    hidden = np.setdiff1d(np.arange(len(labels)), split.labeled)
    labels[hidden] = 1 - labels[hidden]
    changed = write_bundle(tmp_path / "changed", Bundle(real.public(), {**private, "labels": labels}))
    same = task.split(changed, 0)
    for name in ("labeled", "labels", "unlabeled", "validation", "test", "source_validation", "source_test"):
        assert np.array_equal(getattr(same, name), getattr(split, name))
