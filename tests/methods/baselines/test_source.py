from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from selfbench.methods.baselines.source import SourceModel
from selfbench.suite.protocols.stream import Source


def test_predicts_what_the_model_predicts_in_eval_mode_image_by_image(
    source_model: Callable[..., nn.Module], source: Source, images: Tensor
) -> None:
    method = SourceModel()
    method.setup(source_model().train(), source)
    logits = method.predict(images)
    model = source_model()
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(logits, alone, rtol=0, atol=1e-5)
    assert not logits.requires_grad


def test_nothing_changes_over_a_stream(
    stream: Callable[..., object], source_model: Callable[..., nn.Module], images: Tensor
) -> None:
    method = SourceModel()
    result = stream(method)
    expected = source_model().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in method.model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in method.model.parameters())
    assert result.counts.passes == len(images)
    assert np.isfinite(np.concatenate(result.logits)).all()
