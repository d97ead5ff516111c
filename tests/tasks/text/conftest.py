"""A multilingual encoder in miniature, whose tokens are letters, in the files of the real one, and runs of miniatures
by the real engine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from selfbench.suite import registry
from selfbench.suite.board.choose import load_suites
from selfbench.suite.check import check
from selfbench.suite.record import Record, decode
from selfbench.suite.render import build_site
from selfbench.suite.store import Store

LETTERS = "abcdefghijklmnopqrstuvwxyzéñ大阪市長0123456789.,?()"


@pytest.fixture
def letters() -> Callable[..., dict[str, int]]:
    """letters(folder, layers=..., longest=...): a BERT and a tokenizer of letters as files; its vocabulary."""

    def save(folder: Path, layers: int = 2, longest: int = 48) -> dict[str, int]:
        import transformers
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

        names = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
        vocabulary = {name: number for number, name in enumerate(names)}
        tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(folder / "tokenizer.json"))
        torch.manual_seed(0)
        config = transformers.BertConfig(
            vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=layers, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=longest,
        )  # fmt: skip
        transformers.BertForMaskedLM(config).save_pretrained(folder)
        return vocabulary

    return save


class AtWork:
    """A machine of its own for the miniatures in `toys`, whose data lies where `SELFBENCH_DATA` points."""

    def __init__(self, root: Path) -> None:
        self.root, self.results = root, root / "results"

    def prove(self, task: str, method: str) -> Record:
        """What `selfbench check` proves, in worker processes: a killed run that is resumed among it; its record."""
        findings = list(check(registry.get("task", task), method, self.root))
        assert [finding for finding in findings if not finding.ok] == []
        assert findings[-1].what == "resumed equals uninterrupted"
        assert "killed at a checkpoint" in findings[-1].detail
        return self.records(self.root / "first")[0]

    def call(self, *words: object) -> subprocess.CompletedProcess[str]:
        """Call `selfbench WORDS` in a process of its own."""
        return subprocess.run(
            [sys.executable, "-m", "selfbench.suite", *map(str, words)], capture_output=True, text=True, cwd=self.root,
            timeout=300, check=False,
        )  # fmt: skip

    def records(self, results: Path) -> list[Record]:
        return [decode(path.read_bytes(), str(path)) for path in sorted(results.glob("[!.]*/*/*.json"))]

    def page(self, record: Record, results: Path) -> str:
        """The task's page of the site of a suite that the record belongs to."""
        spec = record.spec
        path = self.root / "small.toml"
        pairs = f'[[pairs]]\ntasks = ["{spec.task.name}"]\nmethods = ["{spec.method.name}"]\n'
        path.write_text(f'name = "small"\ntitle = "Small"\ndescription = "-"\nseeds = [{spec.seed}]\n\n{pairs}')
        with Store(results).index() as index:
            build_site(index, load_suites([str(path)], index.summaries()), self.root / "site")
        return (self.root / "site" / "tasks" / f"{spec.task.name}.html").read_text()


@pytest.fixture
def at_work(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> AtWork:
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("SELFBENCH_PATH", str(Path(__file__).parent / "toys"))
    monkeypatch.setenv("SELFBENCH_CACHE", str(home / "cache"))
    monkeypatch.setenv("SELFBENCH_RESULTS", str(home / "results"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return AtWork(home)


def save_rows(folder: Path, form: str, rows: list[dict[str, Any]]) -> None:
    """`rows` as the one file of `folder`, in the form `jsonl`, `csv` or `parquet`."""
    folder.mkdir(parents=True, exist_ok=True)
    if form == "jsonl":
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif form == "csv":
        lines = [",".join(f'"{value}"' for value in row.values()) for row in rows]
        (folder / "rows.csv").write_text("\n".join([",".join(rows[0]), *lines]) + "\n")
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "rows.parquet")
