"""Miniature WILDS data sets in the published layout: random noise as pictures, a few words as texts.

Each function writes below `root`, the `root_dir` of the package. Classes outside of the training set, those of
unlabelled examples among them, are drawn by `hidden`: two miniatures that differ in it alone differ in what no method
may know.
"""

from __future__ import annotations

import csv
import importlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from selfbench.tasks.wilds.compat import usable


def of_package(name: str) -> Any:
    """A module of the package's data sets; imported by itself, the package asks for a newer one in a thread."""
    with usable():
        return importlib.import_module(f"wilds.datasets.{name}")


def release(root: Path, name: str, version: str) -> Path:
    """The data set's folder, with the file whose presence says that it is there."""
    folder = root / f"{name}_v{version}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"RELEASE_v{version}.txt").write_text("a miniature\n")
    return folder


def picture(path: Path, draw: np.random.Generator, side: int = 12) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)


def classes(draw: np.random.Generator, hidden: int, shown: Iterable[bool], n_classes: int) -> np.ndarray:
    """A class an example: those of `shown` ones go round, the others are drawn by `hidden`."""
    shown = np.asarray(list(shown))
    secret = np.random.default_rng([hidden, 77]).integers(0, n_classes, len(shown))
    return np.where(shown, np.cumsum(shown) % n_classes, secret)


def camelyon17(root: Path, hidden: int = 0) -> None:
    draw = np.random.default_rng(1)
    for name, per_slide in (("camelyon17", 3), ("camelyon17_unlabeled", 1)):
        folder = release(root, name, "1.0")
        slides = np.repeat(np.arange(50), per_slide)
        table = pd.DataFrame(
            {
                "patient": [f"{slide:03d}" for slide in slides],
                "node": slides % 5,
                "x_coord": 96 * np.arange(len(slides)),
                "y_coord": 96 * slides,
                "tumor": -1,
                "slide": slides,
                "center": slides // 10,
            }
        )
        if name == "camelyon17":
            table["split"] = np.arange(len(slides)) % 4 // 3
            trained = (table["split"] == 0) & ~table["center"].isin([1, 2])
            table["tumor"] = classes(draw, hidden, trained, 2)
        table.to_csv(folder / "metadata.csv")
        for row in table.itertuples():
            where = f"patient_{row.patient}_node_{row.node}"
            picture(folder / "patches" / where / f"patch_{where}_x_{row.x_coord}_y_{row.y_coord}.png", draw, 96)


def iwildcam(root: Path, hidden: int = 0) -> None:
    draw, n = np.random.default_rng(2), np.arange(90)
    splits = np.array(["train", "val", "test", "id_val", "id_test"])[n % 5]
    for name, version, column in (("iwildcam", "2.0", "filename"), ("iwildcam_unlabeled", "1.0", "uid")):
        folder, labeled = release(root, name, version), column == "filename"
        table = pd.DataFrame(
            {
                "split": splits,
                column: [f"{name[-3:]}{number:04d}{'.jpg' if labeled else ''}" for number in n],
                "y": classes(draw, hidden, splits == ("train" if labeled else ""), 6),
                "location_remapped": n % 9,
                "sequence_remapped": n % 20,
                "datetime": [f"2013-06-{1 + number % 28:02d} 08:{number % 60:02d}:00.000" for number in n],
            }
        )
        if not labeled:
            table["y"] = table["y"].replace({4: -1, 5: 99999})
            table.loc[::3, "datetime"] = None
            table = table.drop(columns="split")
        table.to_csv(folder / "metadata.csv", index=False)
        for file in table[column]:
            picture(folder / ("train" if labeled else "images") / f"{file.removesuffix('.jpg')}.jpg", draw, 24)


def fmow(root: Path, hidden: int = 0) -> None:
    categories = of_package("fmow_dataset").categories
    folder, draw = release(root, "fmow", "1.1"), np.random.default_rng(3)
    n = np.arange(260)
    split = draw.choice(["train", "val", "test", "seq"], len(n), p=[0.5, 0.15, 0.25, 0.1])
    year = 2002 + n % 16
    of_class = classes(draw, hidden, (split == "train") & (year < 2013), 62)
    countries = ["USA", "FRA", "KEN", "CHN", "AUS", "???"]
    pd.DataFrame(
        {
            "split": split,
            "category": [categories[number] for number in of_class],
            "country_code": [countries[number % 6] for number in draw.permutation(n)],
            "timestamp": [f"{value}-03-11T08:15:31Z" for value in year],
        }
    ).to_csv(folder / "rgb_metadata.csv", index=False)
    regions = ["Americas", "Europe", "Africa", "Asia", "Oceania"]
    pd.DataFrame({"alpha-3": countries[:5], "region": regions}).to_csv(folder / "country_code_mapping.csv", index=False)
    for number in n:
        picture(folder / "images" / f"rgb_img_{number}.png", draw)


def rxrx1(root: Path, hidden: int = 0) -> None:
    folder, draw = release(root, "rxrx1", "1.0"), np.random.default_rng(4)
    rows: list[dict[str, Any]] = []
    for number, (part, cell) in enumerate(
        [("train", "HEPG2"), ("train", "U2OS"), ("train", "HEPG2"), ("val", "HEPG2"), ("test", "U2OS")]
    ):
        for site in (1, 2):
            for well in range(8):
                rows.append(
                    {
                        "dataset": part,
                        "cell_type": cell,
                        "experiment": f"{cell}-{number:02d}",
                        "plate": 1 + well % 4,
                        "well": f"B{well + 2:02d}",
                        "site": site,
                    }
                )
    table = pd.DataFrame(rows)
    table["sirna_id"] = classes(draw, hidden, (table["dataset"] == "train") & (table["site"] == 1), 8)
    table.to_csv(folder / "metadata.csv", index=False)
    for row in table.itertuples():
        picture(folder / "images" / row.experiment / f"Plate{row.plate}" / f"{row.well}_s{row.site}.png", draw)


def poverty(root: Path, hidden: int = 0) -> None:
    """More than 2,000 rows of the countries of each fold's training: as many are put aside before it begins."""
    published = of_package("poverty_dataset")

    draw = np.random.default_rng(8)
    for name, version, table, n in (
        ("poverty", "1.1", "dhs_metadata.csv", 160 * len(published.DHS_COUNTRIES)),
        ("poverty_unlabeled", "1.0", "unlabeled_metadata.csv", 4 * len(published.DHS_COUNTRIES)),
    ):
        folder = release(root, name, version)
        country = draw.permutation(np.arange(n) % len(published.DHS_COUNTRIES))
        rows = pd.DataFrame({"country": np.array(published.DHS_COUNTRIES)[country], "year": 2012})
        if name == "poverty":
            secret = np.random.default_rng([hidden, 77]).normal(size=n)
            trained = rows["country"].isin(published.SURVEY_NAMES["2009-17A"]["train"])
            rows["wealthpooled"] = np.where(trained, draw.normal(size=n), secret)
            rows["urban"] = draw.random(n) < 0.4
        rows.to_csv(folder / table, index=False)
        (folder / "images").mkdir(exist_ok=True)
        few = [folder / "images" / f"few_{number}.npz" for number in range(7)]
        for path in few:
            np.savez_compressed(path, x=draw.normal(size=(8, 16, 16)).astype(np.float32))
        for number in range(n):
            (folder / "images" / f"landsat_poverty_img_{number}.npz").hardlink_to(few[number % len(few)])


def globalwheat(root: Path, hidden: int = 0) -> None:
    published, pool = of_package("globalwheat_dataset"), of_package("unlabeled.globalwheat_unlabeled_dataset")

    draw, secret = np.random.default_rng(9), np.random.default_rng([hidden, 77])
    folder, count = release(root, "globalwheat", "1.1"), 0
    for name, sessions in (
        ("official_train", (0, 1, 2)), ("official_val", (20, 21)), ("official_test", (40, 41, 42)),
        ("fixed_train_val", (0, 1)), ("fixed_train_test", (0, 2)),
    ):  # fmt: skip
        rows = []
        for number in range(8):
            count += 1
            picture(folder / "images" / f"w{count}.png", draw, 64)
            corners = (draw if name == "official_train" else secret).integers(0, 40, (2, 2))
            boxes = ";".join(f"{x} {y} {x + 20} {y + 20}" for x, y in corners) if number % 4 else "no_box"
            rows.append((f"w{count}.png", boxes, sessions[number % len(sessions)]))
        table = pd.DataFrame(rows, columns=["image_name", "BoxesString", "domain"])
        table.to_csv(folder / f"{name}.csv", index=False)
    _sessions(published.SESSIONS, published.COUNTRIES, published.LOCATIONS, published.STAGES).to_csv(
        folder / "metadata_domain.csv", sep=";", index=False
    )
    folder = release(root, "globalwheat_unlabeled", "1.0")
    for part in ("train", "val", "test", "extra"):
        names = [f"{part}{number}.png" for number in range(5)]
        for name in names:
            picture(folder / "images" / name, draw, 64)
        table = pd.DataFrame({"image_name": names, "domain": np.arange(5)})
        table.to_csv(folder / f"official_{part}_unlabeled.csv", index=False)
    _sessions(pool.SESSIONS, pool.COUNTRIES, pool.LOCATIONS, pool.STAGES).to_csv(
        folder / "metadata_domain_unlabeled.csv", sep=";", index=False
    )


def _sessions(names: list[str], countries: list[str], locations: list[str], stages: list[str]) -> pd.DataFrame:
    def around(values: list[str]) -> list[str]:
        return [values[number % len(values)] for number in range(len(names))]

    return pd.DataFrame(
        {
            "name": names,
            "country": around(countries),
            "location": around(locations),
            "development_stage": around(stages),
        }
    )


def py150(root: Path, hidden: int = 0, length: int = 12) -> None:
    folder, draw = release(root, "py150", "1.0"), np.random.default_rng(10)
    (folder / "metadata" / "repo_file_names").mkdir(parents=True)
    (folder / "processed").mkdir()
    repositories = [f"owner{number}/repository" for number in range(10)]
    table = pd.DataFrame({"id": range(10), "repo_name": repositories})
    table.to_csv(folder / "metadata" / "repo_file_names" / "repo_ids.csv", index=False)
    secret = np.random.default_rng([hidden, 77])
    for number, part in enumerate(("train", "IDval", "OODval", "IDtest", "OODtest")):
        names = "".join(f"{repositories[(row + number) % 10]}/a/b{row}.py\n" for row in range(9))
        (folder / "metadata" / "repo_file_names" / f"{part}.txt").write_text(names)
        tokens = draw.integers(0, 30, (9, length)).tolist()
        kinds = (draw if part == "train" else secret).choice([0, 1, 2, 3, 4, 5, 6, -100], (9, length)).tolist()
        (folder / "processed" / f"{part}_input.json").write_text(json.dumps(tokens))
        (folder / "processed" / f"{part}_input_tok_type.json").write_text(json.dumps(kinds))


def ogb_molpcba(root: Path, hidden: int = 0, n: int = 40) -> None:
    """Chains of four to eight atoms; OGB's folder has no version in its name."""
    draw, folder = np.random.default_rng(11), root / "ogbg_molpcba"
    for name in ("raw", "split/scaffold"):
        (folder / name).mkdir(parents=True)
    (folder / "RELEASE_v1.txt").write_text("a miniature\n")

    def write(name: str, values: np.ndarray) -> None:
        pd.DataFrame(values).to_csv(folder / f"{name}.csv.gz", header=False, index=False, compression="gzip")

    atoms = draw.integers(4, 9, n)
    write("raw/num-node-list", atoms)
    write("raw/num-edge-list", atoms - 1)
    write("raw/edge", np.concatenate([np.stack([np.arange(k - 1), np.arange(1, k)], axis=1) for k in atoms]))
    write("raw/node-feat", np.stack([draw.integers(0, k, atoms.sum()) for k in (50, 4, 9, 9, 8, 5, 5, 2, 2)], axis=1))
    write("raw/edge-feat", np.stack([draw.integers(0, k, atoms.sum() - n) for k in (4, 5, 2)], axis=1))
    shown, secret = (source.integers(0, 2, (n, 128)).astype(float) for source in (draw, np.random.default_rng(hidden)))
    labels = np.where(np.arange(n)[:, None] < n // 2, shown, secret)
    labels[draw.random((n, 128)) < 0.3] = np.nan
    write("raw/graph-label", labels)
    np.save(folder / "raw" / "scaffold_group.npy", draw.integers(0, 12, n))
    order = np.arange(n)
    for name, part in zip(("train", "valid", "test"), np.split(order, [n // 2, 3 * n // 4]), strict=True):
        write(f"split/scaffold/{name}", part)
    molpcba_unlabeled(root)


def molpcba_unlabeled(root: Path, n: int = 30) -> None:
    """Chains as above in OGB's binary form: each bond in both directions, one after the other."""
    draw, folder = np.random.default_rng(12), root / "molpcba_unlabeled"
    for name in ("raw", "processed", "split/scaffold"):
        (folder / name).mkdir(parents=True)
    atoms = draw.integers(4, 11, n)
    bonds = [np.stack([np.arange(k - 1), np.arange(1, k)], axis=1) for k in atoms]
    edges = np.concatenate([np.stack([own, own[:, ::-1]], axis=1).reshape(-1, 2) for own in bonds])
    features = np.stack([draw.integers(0, k, atoms.sum() - n) for k in (4, 5, 2)], axis=1).repeat(2, axis=0)
    np.savez(
        folder / "raw" / "data.npz", edge_index=edges.T, edge_feat=features, num_nodes_list=atoms,
        num_edges_list=2 * (atoms - 1),
        node_feat=np.stack([draw.integers(0, k, atoms.sum()) for k in (50, 4, 9, 9, 8, 5, 5, 2, 2)], axis=1),
    )  # fmt: skip
    np.save(folder / "processed" / "group_assignment.npy", draw.integers(0, 12, n))
    for name, part in zip(("train", "valid", "test"), np.split(draw.permutation(n), [10, 15]), strict=True):
        table = pd.DataFrame(part)
        table.to_csv(folder / f"split/scaffold/{name}.csv.gz", header=False, index=False, compression="gzip")


WORDS = ("good", "bad", "fine", "poor", "great", "dull", "a", "the", "story", "plot", ",", "##s")


def text(draw: np.random.Generator, words: int = 6) -> str:
    return " ".join(draw.choice(WORDS[:-1], draw.integers(1, words)))


IDENTITIES = ("male", "female", "LGBTQ", "christian", "muslim", "other_religions", "black", "white")
OTHERS = (
    "identity_any", "severe_toxicity", "obscene", "threat", "insult", "identity_attack", "sexual_explicit",
)  # fmt: skip


def civilcomments(root: Path, hidden: int = 0) -> None:
    draw, n = np.random.default_rng(5), 400
    folder = release(root, "civilcomments", "1.0")
    split = draw.choice(["train", "val", "test"], n, p=[0.4, 0.2, 0.4])
    table = pd.DataFrame({"comment_text": [text(draw) + ' "x"' for _ in range(n)], "split": split})
    table["toxicity"] = 0.1 + 0.8 * classes(draw, hidden, split == "train", 2)
    for name in (*IDENTITIES, *OTHERS):
        table[name] = draw.random(n)
    table.to_csv(folder / "all_data_with_identities.csv")
    pool = pd.DataFrame({"comment_text": [text(draw) for _ in range(60)]})
    pool["toxicity"] = 0.1 + 0.8 * classes(draw, hidden, [False] * 60, 2)
    pool.to_csv(release(root, "civilcomments_unlabeled", "1.0") / "unlabeled_data_with_identities.csv")


def amazon(root: Path, hidden: int = 0) -> None:
    folder, draw = release(root, "amazon", "2.1"), np.random.default_rng(6)
    codes = {"train": (0, 2, 4), "val": (1,), "test": (3,), "more": (11, 12, 13, -1)}
    users = [(user, code) for part in codes.values() for user in range(8) for code in part for _ in range(4)]
    split = np.array([code for _, code in users])
    table = pd.DataFrame(
        {
            "reviewerID": [f"U{'' if code in codes['train'] else code}-{user}" for user, code in users],
            "asin": [f"B{number}" for number in draw.integers(0, 20, len(users))],
            "overall": 1.0 + classes(draw, hidden, split == 0, 5),
            "reviewTime": "01 1, 2012",
            "unixReviewTime": 1_300_000_000,
            "reviewText": [text(draw) + ' "x"' for _ in users],
            "summary": "s",
            "verified": True,
            "category": draw.choice(["Books", "Toys"], len(users)),
            "reviewYear": draw.integers(2005, 2019, len(users)),
        }
    )
    table.to_csv(folder / "reviews.csv", index=False, quoting=csv.QUOTE_NONNUMERIC)
    (folder / "splits").mkdir(exist_ok=True)
    pd.DataFrame({"split": split}).to_csv(folder / "splits" / "user.csv", index=False)


def distilbert(folder: Path) -> None:
    """A DistilBERT of 8 features with a vocabulary of a dozen words, in the files of the hub."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import DistilBertConfig, DistilBertForMaskedLM

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, "[MASK]"])}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = DistilBertConfig(
        vocab_size=len(vocabulary), dim=8, hidden_dim=16, n_heads=2, n_layers=1, max_position_embeddings=512
    )
    DistilBertForMaskedLM(config).save_pretrained(folder)


ALL: dict[str, Callable[..., None]] = {
    "camelyon17": camelyon17,
    "iwildcam": iwildcam,
    "fmow": fmow,
    "rxrx1": rxrx1,
    "poverty": poverty,
    "globalwheat": globalwheat,
    "py150": py150,
    "ogb-molpcba": ogb_molpcba,
    "civilcomments": civilcomments,
    "amazon": amazon,
}
