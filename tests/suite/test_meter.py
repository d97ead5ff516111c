"""The meter counts what is computed, through whatever door, and never lets more be used than the limit."""

from __future__ import annotations

import copy
import io
import pickle
import random
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from selfbench.suite.errors import BudgetExhausted, MethodError
from selfbench.suite.meter import Meter
from selfbench.suite.spec import Budget

B = 8


def make_meter(limit: float = 1e9, currency: str = "passes") -> Meter:
    return Meter(Budget(currency=currency, limit=limit), "tested")


def net() -> nn.Sequential:
    """30 + 12 parameters: the body has the share 30/42, the head 12/42."""
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2, bias=False))


def attached(meter: Meter) -> nn.Sequential:
    model = net()
    assert meter.attach(model) is model
    return model


def x(n: int = B) -> Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(0))


def counted(meter: Meter) -> tuple[float, float]:
    return meter.counts.forward, meter.counts.backward


def test_a_training_step_is_one_forward_and_one_backward() -> None:
    meter = make_meter()
    attached(meter)(x()).sum().backward()
    assert counted(meter) == (B, B)
    assert meter.counts.passes == meter.used == 3 * B


def test_without_gradients_there_is_no_backward() -> None:
    meter = make_meter()
    model = attached(meter)
    with torch.no_grad():
        model(x())
    with torch.inference_mode():
        model(x())
    model.requires_grad_(False)
    model(x())
    assert counted(meter) == (3 * B, 0)


def test_a_forward_that_is_not_followed_back_counts_forward_alone() -> None:
    meter = make_meter()
    model = attached(meter)
    kept = model(x())
    model(x(5))
    kept.sum().backward()
    assert counted(meter) == (B + 5, B)


def test_every_backward_through_a_kept_graph_counts() -> None:
    meter = make_meter()
    loss = attached(meter)(x()).sum()
    for _ in range(3):
        loss.backward(retain_graph=True)
    assert counted(meter) == (B, 3 * B)


def test_gradients_asked_for_by_hand_count() -> None:
    meter = make_meter()
    model = attached(meter)
    torch.autograd.grad(model(x()).sum(), list(model.parameters()))
    assert counted(meter) == (B, B)


def test_a_gradient_of_the_input_alone_counts() -> None:
    meter = make_meter()
    model = attached(meter).requires_grad_(False)
    model(x().requires_grad_()).sum().backward()
    assert counted(meter) == (B, B)


def _pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def _torch_saved(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("make", [copy.deepcopy, copy.copy, _pickled, _torch_saved], ids=lambda make: make.__name__)
def test_copies_count(make: Any) -> None:
    meter = make_meter()
    twin = make(attached(meter))
    twin(x()).sum().backward()
    assert counted(meter) == (B, B)
    make(twin)(x())
    assert counted(meter) == (2 * B, B)
    twin[2](torch.randn(B, 6))
    assert meter.counts.forward == pytest.approx(2 * B + B * 12 / 42)


def test_a_copy_of_a_part_counts_by_its_share() -> None:
    meter = make_meter()
    copy.deepcopy(attached(meter)[0])(x())
    assert meter.counts.forward == pytest.approx(B * 30 / 42)


def test_other_weights_through_the_same_model_count() -> None:
    meter = make_meter()
    model = attached(meter)
    weights = {name: value + 1 for name, value in model.state_dict().items()}
    functional_call(model, weights, (x(),))
    assert counted(meter) == (B, 0)


def test_children_called_alone_count_by_their_share_of_the_parameters() -> None:
    meter = make_meter()
    model = attached(meter)
    features = model[1](model[0](x()))
    assert meter.counts.forward == pytest.approx(B * 30 / 42)
    model[2](features).sum().backward()
    assert meter.counts.forward == pytest.approx(B)
    assert meter.counts.backward == pytest.approx(B)


def test_children_called_by_the_model_count_once() -> None:
    meter = make_meter()
    model = attached(meter)
    outer = nn.Sequential(model, nn.Softmax(dim=1))
    outer(x())
    assert counted(meter) == (B, 0)


def test_two_models_inside_one_forward_both_count() -> None:
    meter = make_meter()

    class Ensemble(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = attached(meter), attached(meter)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.a(inputs) + self.b(inputs)

    Ensemble()(x()).sum().backward()
    assert counted(meter) == (2 * B, 2 * B)


class Output(OrderedDict):
    """Like the outputs of language models: a mapping with the loss first."""


@dataclass
class Named:
    name: str
    logits: Tensor


class Wrapped(nn.Module):
    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.net, self.wrap = net(), wrap

    def forward(self, inputs: Tensor, scale: float = 1.0) -> Any:
        return self.wrap(scale * self.net(inputs))


def _loss_first(logits: Tensor) -> Output:
    return Output(loss=logits.square().mean(), logits=logits, text="two words")


@pytest.mark.parametrize(
    ("wrap", "unwrap"),
    [
        (lambda logits: {"text": "a", "logits": logits}, lambda output: output["logits"].sum()),
        (_loss_first, lambda output: output["loss"]),
        (_loss_first, lambda output: output["logits"].sum()),
        (lambda logits: ("text", [logits, logits + 1]), lambda output: output[1][1].sum()),
        (lambda logits: (logits[:, :1] * 2, logits[:, 1:] * 2), lambda output: output[1].sum()),
        (lambda logits: (logits * 2, logits * 3), lambda output: (output[0] + output[1]).sum()),
        (lambda logits: Named("a", logits), lambda output: output.logits.sum()),
        (lambda logits: logits.sum(), lambda output: output),
    ],
    ids=["dict", "loss of an output", "logits of an output", "nested", "second of two", "both of two", "dataclass",
         "scalar"],
)  # fmt: skip
def test_outputs_of_any_form_count_their_whole_batch_once_a_backward(wrap: Any, unwrap: Any) -> None:
    meter = make_meter()
    model = meter.attach(Wrapped(wrap))
    loss = unwrap(model(x()))
    loss.backward(retain_graph=True)
    assert counted(meter) == (B, B)
    loss.backward()
    assert counted(meter) == (B, 2 * B)


def test_a_batch_given_by_name_counts() -> None:
    meter = make_meter()
    model = meter.attach(Wrapped(lambda logits: logits))
    model(scale=2.0, inputs=x(3)).sum().backward()
    assert counted(meter) == (3, 3)


def test_a_generator_as_output_is_left_to_its_reader() -> None:
    model = make_meter().attach(Wrapped(lambda logits: (row for row in logits)))
    assert len(list(model(x()))) == B


def test_nothing_counts_while_paused() -> None:
    meter = make_meter()
    model = attached(meter)
    with meter.paused():
        with meter.paused():
            model(x())
        model(x()).sum().backward()
        meter.charge(forward=5, generated=5)
    assert counted(meter) == (0, 0)
    model(x())
    assert counted(meter) == (B, 0)


def test_a_pass_that_would_exceed_the_limit_is_refused_before_it_is_done() -> None:
    meter = make_meter(limit=3 * B)
    model = attached(meter)
    ran = []
    model[0].register_forward_hook(lambda *_: ran.append(1))
    for _ in range(3):
        model(x())
    with pytest.raises(BudgetExhausted):
        model(x())
    assert len(ran) == 3
    assert meter.used == meter.budget.limit
    assert meter.ended
    assert meter.progress == 1.0


def test_the_limit_itself_may_be_reached_exactly() -> None:
    meter = make_meter(limit=3 * B)
    attached(meter)(x()).sum().backward()
    assert meter.used == 3 * B
    assert not meter.ended


def test_a_backward_that_would_exceed_the_limit_is_refused_before_it_is_done() -> None:
    meter = make_meter(limit=3 * B - 1)
    model = attached(meter)
    loss = model(x()).sum()
    with pytest.raises(BudgetExhausted):
        loss.backward()
    assert counted(meter) == (B, 0)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_going_on_after_the_end_is_an_error_with_the_methods_name() -> None:
    meter = make_meter(limit=B)
    model = attached(meter)
    model(x())
    with pytest.raises(BudgetExhausted):
        model(x())
    for go_on in (lambda: model(x(1)), lambda: copy.deepcopy(model)(x(1)), lambda: model[0](x(1))):
        with pytest.raises(MethodError, match=rf"'tested' went on after its budget of {B} passes"):
            go_on()
    assert meter.used == B
    with meter.paused():
        model(x())


def test_children_count_as_children_again_after_a_refused_or_failed_pass() -> None:
    """A pass that raises in the middle leaves the nesting as it was."""
    meter = make_meter(limit=10 * B)
    model = attached(meter)
    with pytest.raises(RuntimeError, match="shapes"):
        model(torch.randn(B, 5))
    before = meter.counts.forward
    model[0](x())
    assert meter.counts.forward - before == pytest.approx(B * 30 / 42)
    meter.counts.forward = 10.0 * B
    with pytest.raises(BudgetExhausted):
        model(x())
    meter.ended, meter.counts.forward = False, 0.0
    model[0](x())
    assert meter.counts.forward == pytest.approx(B * 30 / 42)


def test_tokens_are_a_currency() -> None:
    meter = make_meter(limit=10, currency="tokens")
    model = attached(meter)
    model(x())
    meter.charge(generated=10)
    assert meter.used == 10
    with pytest.raises(BudgetExhausted):
        meter.charge(scored=1)
    assert meter.counts.tokens == 10
    with pytest.raises(MethodError, match="10 tokens"):
        meter.charge(trained=1)


def test_tokens_are_counted_by_what_is_done_with_them_and_their_sum_is_the_budgets() -> None:
    meter = make_meter(limit=100, currency="tokens")
    draw = random.Random(0)
    told = {"generated": 0, "scored": 0, "trained": 0}
    while sum(told.values()) < 95:
        work = {kind: draw.randrange(3) for kind in told if draw.random() < 0.7}
        meter.charge(**work)
        told = {kind: number + work.get(kind, 0) for kind, number in told.items()}
    with pytest.raises(BudgetExhausted):
        meter.charge(generated=2, scored=2, trained=2)
    assert min(told.values()) > 0
    assert {kind: getattr(meter.counts, f"{kind}_tokens") for kind in told} == told
    assert meter.used == meter.counts.tokens == sum(told.values()) <= 100
    # A checkpoint of before they were told apart has their sum alone.
    meter.restore({"tokens": 7})
    assert meter.used == 7


def test_seconds_are_a_currency() -> None:
    meter = make_meter(limit=100, currency="seconds")
    model = attached(meter)
    meter.restore(meter.state() | {"seconds": 99.0})
    model(x())
    assert meter.progress == pytest.approx(0.99)
    meter.restore(meter.state() | {"seconds": 100.0})
    with pytest.raises(BudgetExhausted):
        model(x())
    assert counted(meter) == (B, 0)


def test_the_clock_runs_in_running_and_stands_while_paused(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("selfbench.suite.meter.time.perf_counter", lambda: now)
    meter = make_meter()
    now = 5.0
    with meter.running():
        now = 7.0
        assert meter.seconds == 2.0
        with meter.paused():
            now = 20.0
            assert meter.seconds == 2.0
        now = 21.0
    now = 30.0
    assert meter.seconds == meter.counts.seconds == 3.0


def test_waits_for_a_gpu_are_on_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that launches work in one second and leaves the device two seconds of it took three."""
    now, waits = 0.0, []

    def wait(device: torch.device) -> None:
        nonlocal now
        waits.append(device)
        now += 2.0

    monkeypatch.setattr("selfbench.suite.meter.time.perf_counter", lambda: now)
    monkeypatch.setattr("selfbench.suite.meter.torch.cuda.synchronize", wait)
    meter = Meter(Budget(limit=100.0), "method", torch.device("cuda"))
    for _ in range(2):
        meter.start()
        now += 1.0
        meter.stop()
    assert not waits
    with meter.paused():
        assert (meter.seconds, len(waits)) == (4.0, 1)
    assert meter.state()["seconds"] == 4.0
    meter.start()
    now += 1.0
    meter.stop()
    assert meter.state()["seconds"] == 7.0
    assert len(waits) == 2


def test_the_counts_survive_a_checkpoint() -> None:
    meter = make_meter()
    attached(meter)(x()).sum().backward()
    meter.charge(generated=1, trained=2)
    meter.counts.labels, meter.counts.validation_calls = 4, 5
    other = make_meter()
    other.restore(meter.state())
    assert other.counts == meter.counts
    assert other.state() == meter.state()


def test_a_model_without_parameters_counts() -> None:
    meter = make_meter()
    meter.attach(nn.Sequential(nn.Flatten(), nn.Softmax(dim=1)))(x())
    assert counted(meter) == (B, 0)


def test_counting_changes_no_number() -> None:
    plain, metered = net(), net()
    metered.load_state_dict(plain.state_dict())
    make_meter().attach(metered)
    for model in (plain, metered):
        model(x()).square().mean().backward()
    for mine, theirs in zip(plain.parameters(), metered.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)
