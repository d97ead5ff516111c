"""Files that a new method or task starts from. They run as they are."""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from string import Template

from .errors import UsageError

_STREAM_METHOD = Template('''\
"""$name: one sentence on the idea (Author et al., year, arXiv:....)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from selfbench import Source, StreamMethod, hyper, register_method


@register_method("$name", family="self-training", protocol="stream", paper="-", needs=("norm-layers",))
@dataclass
class $cls(StreamMethod):
    """Entropy minimisation on all parameters; replace it by your algorithm, step for step."""

    lr: float = hyper(1e-4, low=1e-6, high=1e-2, log=True)

    def setup(self, model: nn.Module, source: Source) -> None:
        self.model = model
        self.optimizer = torch.optim.SGD(model.parameters(), lr=self.lr)

    def predict(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, K), sealed before the next batch is shown."""
        logits = self.model(images)
        log_p = logits.log_softmax(dim=1)
        loss = -(log_p.exp() * log_p).sum(dim=1).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return logits
''')
_ADAPTATION_METHOD = Template('''\
"""$name: one sentence on the idea (Author et al., year, arXiv:....)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import cross_entropy

from selfbench import AdaptationMethod, hyper, register_method


@register_method("$name", family="self-training", protocol="adaptation", paper="-")
@dataclass
class $cls(AdaptationMethod):
    """Confident predictions become labels; replace it by your algorithm, step for step."""

    threshold: float = hyper(0.95, low=0.5, high=1.0)

    def unlabeled_ratio(self) -> int:
        return 1

    def loss(self, labeled, unlabeled) -> Tensor:  # type: ignore[no-untyped-def]
        """labeled.weak (B, ...), labeled.y (B,), unlabeled.weak (B, ...) -> scalar."""
        supervised = cross_entropy(self.model(labeled.weak), labeled.y)
        logits = self.model(unlabeled.weak)
        confidence, guess = logits.detach().softmax(dim=1).max(dim=1)
        mask = (confidence >= self.threshold).float()
        return supervised + (cross_entropy(logits, guess, reduction="none") * mask).mean()
''')
_POLICY_METHOD = Template('''\
"""$name: one sentence on the idea (Author et al., year, arXiv:....)."""

from __future__ import annotations

from dataclasses import dataclass

from selfbench import Example, Policy, PolicyMethod, PolicyView, hyper, register_method


@register_method("$name", family="self-training", protocol="policy", paper="-", needs=("verifier",))
@dataclass
class $cls(PolicyMethod):
    """What the verifier accepts is trained on; replace it by your algorithm, step for step."""

    samples: int = hyper(4, low=1, high=32)

    def round(self, policy: Policy, view: PolicyView, number: int) -> None:
        """Improve the policy; the harness evaluates it afterwards."""
        made = policy.generate(view.prompts, self.samples, temperature=0.7)
        tried = [(at, text) for at, texts in enumerate(made) for text in texts if view.parse(text) is not None]
        right = view.verify([at for at, _ in tried], [text for _, text in tried])
        kept = [Example(view.prompts[at], text) for (at, text), good in zip(tried, right) if good]
        policy.finetune([*view.demonstrations, *kept], epochs=4)
''')
_STREAM_TASK = Template('''\
"""$name: what the stream is, in one sentence."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import make_blobs
from torch import Tensor, nn

from selfbench import Bundle, Stream, StreamTask, register_task


@register_task(
    "$name",
    protocol="stream",
    version="1",
    metric="error",
    title="$title",
    budget={"currency": "passes", "limit": 50000, "wall_seconds": 120},
    data=(),
    grants=("norm-layers", "batch-norm"),
)
class $cls(StreamTask):
    """Gaussian blobs that drift; replace it by your data, model and order."""

    n_classes = 3
    clean_error = (0.0, 0.2)

    def build(self, data) -> Bundle:  # type: ignore[no-untyped-def]
        x, y = make_blobs(1000, n_features=4, centers=3, random_state=0)
        x = x.astype(np.float32)
        torch.manual_seed(0)
        model = self.model()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(200):
            loss = nn.functional.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(y))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        error = float((model(torch.from_numpy(x)).argmax(1).numpy() != y).mean())
        return Bundle({"x": x + 1.0}, {"labels": y}, model.state_dict(), {"clean_error": error})

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3))

    def stream(self, bundle, seed: int) -> Stream:  # type: ignore[no-untyped-def]
        n = len(bundle.private()["labels"])
        order = np.random.default_rng(seed).permutation(n)
        return Stream(order, np.append(np.arange(0, n, 50), n), np.zeros(n, np.int64), ("drift",))

    def images(self, public, indices) -> Tensor:  # type: ignore[no-untyped-def]
        return torch.from_numpy(public["x"][indices])
''')
_ADAPTATION_TASK = Template('''\
"""$name: what is labelled, what is not, and what is scored, in one sentence."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import make_moons
from torch import Tensor, nn

from selfbench import AdaptationTask, Bundle, Recipe, register_task
from selfbench.suite.protocols.adaptation import Split


@register_task(
    "$name",
    protocol="adaptation",
    version="1",
    metric="error",
    title="$title",
    budget={"currency": "passes", "limit": 100000, "wall_seconds": 120},
    data=(),
    grants=("real-inputs",),
)
class $cls(AdaptationTask):
    """Two moons, three labels each; replace it by your data, split and model."""

    n_classes = 2
    recipe = Recipe(lr=0.03, batch_size=16, ema=0.99)

    def build(self, data) -> Bundle:  # type: ignore[no-untyped-def]
        x, y = make_moons(1500, noise=0.1, random_state=0)
        return Bundle({"x": x.astype(np.float32)}, {"labels": y})

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 2))

    def split(self, bundle, seed: int) -> Split:  # type: ignore[no-untyped-def]
        labels = np.asarray(bundle.private()["labels"])
        order = np.random.default_rng(seed).permutation(1000)
        labeled = np.concatenate([order[labels[order] == k][:3] for k in range(2)])
        rest = order[~np.isin(order, labeled)]
        return Split(labeled, labels[labeled], rest[6:], rest[:6], np.arange(1000, 1500))

    def inputs(self, public, indices) -> Tensor:  # type: ignore[no-untyped-def]
        return torch.from_numpy(public["x"][indices])

    def weak(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(inputs.shape, generator=generator, device=inputs.device)
        return inputs + 0.05 * noise
''')
_TEMPLATES = {
    ("method", "stream"): _STREAM_METHOD,
    ("method", "adaptation"): _ADAPTATION_METHOD,
    ("method", "policy"): _POLICY_METHOD,
    ("task", "stream"): _STREAM_TASK,
    ("task", "adaptation"): _ADAPTATION_TASK,
}


def write_scaffold(kind: str, name: str, protocol: str, folder: Path) -> Path:
    """Write `<folder>/<name>.py`; raises `UsageError` on a bad name, an unknown protocol or an existing file."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise UsageError(f"A {kind} name is lower case words joined by '-', such as my-{kind}; got '{name}'.")
    template = _TEMPLATES.get((kind, protocol))
    if template is None:
        known = " or ".join(known for of, known in _TEMPLATES if of == kind)
        raise UsageError(f"There is no scaffold of a {kind} for the protocol '{protocol}'; use {known}.")
    stem = name.replace("-", "_")
    path = folder / f"{stem}_.py" if keyword.iskeyword(stem) else folder / f"{stem}.py"
    cls = "".join(word.capitalize() for word in name.split("-"))
    text = template.substitute(name=name, cls=cls, title=name.replace("-", " ").capitalize())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{path} exists; choose another name or --folder.") from None
    except OSError as error:
        raise UsageError(f"Cannot write {path}: {error.strerror}.") from None
    return path
