"""The bare loop of a stream method: what the harness is compared with. Prints its seconds and its error.

python bare_loop.py METHOD TASK
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import torch

from selfbench.suite import registry
from selfbench.suite.prepare.bundles import bundle_folder
from selfbench.suite.protocols.stream import Source
from selfbench.suite.spec import RunSpec
from selfbench.suite.suites import expand


def bare(spec: RunSpec) -> float:
    """Load, predict batch by batch, and take the error: no meter, no other process, no record."""
    method_class, task = registry.get("method", spec.method.name).load(), registry.get("task", spec.task.name).load()()
    bundle = bundle_folder(registry.get("task", spec.task.name))
    public = bundle.public()
    model = task.model()
    model.load_state_dict(bundle.model())
    stream = task.stream(bundle, spec.seed)
    method = method_class(**spec.method.params)
    method.setup(model.eval(), Source(task.n_classes, torch.device("cpu"), torch.Generator().manual_seed(0)))
    logits = [
        method.predict(task.images(public, stream.indices[start:stop])).detach().numpy()
        for start, stop in zip(stream.cuts[:-1], stream.cuts[1:], strict=True)
    ]
    labels = task.labels(bundle.private(), stream.indices)
    return float(task.score(np.concatenate(logits), labels, stream.domains, stream.domain_names).metrics["error"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    [wanted] = expand(tasks=[sys.argv[2]], methods=[sys.argv[1]], seeds=[0])
    start = time.perf_counter()
    error = bare(wanted)
    print(json.dumps({"seconds": time.perf_counter() - start, "error": error}))
