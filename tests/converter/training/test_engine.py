"""Training: any task, every precision, what stays a user's, and what happens on the way to a cut."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor, nn
from torch.nn import functional as F

from dprp.converter import (
    ConverterWarning,
    FinetuneConfig,
    LowRank,
    MacBudget,
    Metric,
    RankPenalty,
    RankRatio,
    Step,
    TrainingError,
    convert,
    finetune,
    plan_ranks,
    survey,
)
from dprp.converter.conversion.attached import low_rank_layers
from dprp.converter.lowrank.forms import Form
from dprp.converter.training.average import Average
from dprp.converter.training.losses import orthogonality
from dprp.converter.training.optimizers import rate_at

EXAMPLE = torch.zeros(1, 3, 16, 16)


def wide(dense: nn.Module) -> nn.Module:
    """Everything factored, so that there is much to cut."""
    return convert(dense, plan_ranks(survey(dense, EXAMPLE), RankRatio(1.0), forms=[Form.SPATIAL]))


def blobs(count: int = 96, size: int = 16) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    kinds = torch.randn(10, 3, 16, 16, generator=generator)
    labels = torch.arange(count) % 10
    images = kinds[labels] + 0.3 * torch.randn(count, 3, 16, 16, generator=generator)
    return [(images[start : start + size], labels[start : start + size]) for start in range(0, count, size)]


def quick(**changes: Any) -> FinetuneConfig:
    return FinetuneConfig(**({"epochs": 4, "cuts": 4, "rank_multiple": 2, "cpu": True} | changes))


def recorded(model: nn.Module, batches: Any, config: FinetuneConfig, **more: Any) -> tuple[nn.Module, list[Step]]:
    steps: list[Step] = []
    return finetune(model, batches, config, on_step=steps.append, progress=False, **more), steps


class Segmenter(nn.Module):
    """Says of each pixel which of three channels is the brightest around it, in a dictionary as torchvision does."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Conv2d(3, 24, 3, padding=1)
        self.norm = nn.BatchNorm2d(24)
        self.head = nn.Conv2d(24, 3, 3, padding=1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": self.head(self.norm(self.inside(images)).relu())}


def _pixels(model: nn.Module, batches: Any) -> float:
    with torch.no_grad():
        right = [(model(images)["out"].argmax(1) == wanted).float().mean() for images, wanted in batches]
    return 100 * float(torch.stack(right).mean())


PIXELS = Metric("pixels", _pixels)


def test_a_segmentation_network_is_fine_tuned() -> None:
    torch.manual_seed(0)
    dense = Segmenter().eval()
    batches = [(images, F.avg_pool2d(images, 3, 1, 1).argmax(1)) for images, _ in blobs()]
    start = wide(dense)
    config = quick(epochs=12, budget=MacBudget(0.6), learning_rate=0.2, distill=0.05, matching=0.01)
    before = _pixels(start.eval(), batches)
    new, steps = recorded(start, batches, config, teacher=dense, evaluate_on=batches, metric=PIXELS)
    assert steps[-1].score == pytest.approx(_pixels(new, batches))
    assert steps[-1].score > before + 20
    assert steps[-1].macs <= 0.6
    assert steps[0].matching > 0


def test_any_loss_of_any_targets(residual: nn.Module) -> None:
    def far(outputs: Tensor, targets: dict[str, Tensor]) -> Tensor:
        return (outputs[:, 0] - targets["height"]).square().mean()

    batches = [(images, {"height": labels.float() / 10}) for images, labels in blobs()]
    _, steps = recorded(wide(residual), batches, quick(epochs=6, learning_rate=0.02), loss=far)
    assert steps[-1].task < 0.5 * steps[0].task


def test_two_halves_are_one_batch() -> None:
    torch.manual_seed(1)
    dense = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 14 * 14, 10)).eval()
    start = wide(dense)
    whole, halves = (
        finetune(start, blobs(96, size), quick(epochs=2, accumulate=parts), progress=False).state_dict()
        for size, parts in ((32, 1), (16, 2))
    )
    for name, value in whole.items():
        torch.testing.assert_close(halves[name], value, rtol=1e-4, atol=1e-5)


def test_what_is_the_users_stays(residual: nn.Module) -> None:
    start = wide(residual)
    norms = [name for name, module in start.named_modules() if isinstance(module, nn.BatchNorm2d)]
    layer = next(iter(low_rank_layers(start)))
    start.get_submodule(norms[0]).requires_grad_(False)
    start.get_submodule(layer).requires_grad_(False)
    theirs = Accelerator(cpu=True, mixed_precision="no")
    state, random = AcceleratorState().__dict__.copy(), torch.random.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConverterWarning)  # of CPUs without bf16
        new = finetune(start, blobs(), quick(epochs=1, mixed_precision="bf16"), progress=False)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert AcceleratorState().__dict__ == state
    assert theirs.mixed_precision == "no"
    for name, value in start.get_submodule(norms[0]).state_dict().items():
        assert torch.equal(new.get_submodule(norms[0]).state_dict()[name], value), name
    assert torch.equal(new.get_submodule(layer).u, start.get_submodule(layer).u)
    others = [name for name in norms if not torch.equal(_mean(new, name), _mean(start, name))]
    assert others == norms[1:]
    # Nothing of the precision is left behind.
    assert "forward" not in vars(new)
    assert new(EXAMPLE).dtype == torch.float32
    AcceleratorState._reset_state(reset_partial_state=True)
    assert not PartialState._shared_state


def _mean(model: nn.Module, norm: str) -> Tensor:
    mean = model.get_submodule(norm).running_mean
    assert isinstance(mean, Tensor)
    return mean


def test_norms_keep_their_statistics_where_they_shall(residual: nn.Module) -> None:
    start = wide(residual)
    new = finetune(start, blobs(), quick(epochs=1, train_norms=False), progress=False)
    for name, value in start.named_buffers():
        assert torch.equal(dict(new.named_buffers())[name], value), name


@pytest.mark.parametrize(
    ("taught", "distill", "wanted", "learn"),
    [
        (True, 1.0, None, False),
        (True, 0.7, None, True),
        (False, 1.0, None, True),
        (True, 1.0, True, True),
        (True, 0.7, False, False),
    ],
)
def test_norms_learn_where_labels_have_a_part(
    residual: nn.Module, taught: bool, distill: float, wanted: bool | None, learn: bool
) -> None:
    start, config = wide(residual), quick(epochs=1, distill=distill, train_norms=wanted)
    new = finetune(start, blobs(), config, teacher=residual if taught else None, progress=False)
    before, after = (
        torch.cat([one for name, one in model.named_buffers() if "running" in name]) for model in (start, new)
    )
    assert torch.equal(before, after) is not learn


def test_a_batch_that_is_not_finite_is_left_out(residual: nn.Module) -> None:
    batches = blobs()
    broken = (torch.full_like(batches[0][0], torch.nan), batches[0][1])
    with pytest.warns(ConverterWarning, match="a batch with values that are not finite was left out"):
        new, steps = recorded(wide(residual), [*batches, broken], quick(epochs=1))
    assert len(steps) == len(batches)
    assert all(value.isfinite().all() for value in new.state_dict().values())


def test_fading_makes_cuts_that_cost_nothing(residual: nn.Module) -> None:
    """What is cut is gone already."""
    jumps = {}
    for kind in (RankPenalty.NONE, RankPenalty.FADE):
        config = quick(budget=MacBudget(0.4), rank_penalty=kind, learning_rate=0.01, prune_until=0.8)
        _, steps = recorded(wide(residual), blobs(), config)
        cuts = [step.cut for step in steps if step.cut]
        assert len(cuts) == 4
        jumps[kind] = max(abs(cut.jump or 0.0) for cut in cuts)
    assert jumps[RankPenalty.FADE] < 1e-4
    assert jumps[RankPenalty.NONE] > 10 * jumps[RankPenalty.FADE]


@pytest.mark.parametrize("kind", list(RankPenalty))
def test_every_penalty_lands_on_the_budget(residual: nn.Module, kind: RankPenalty) -> None:
    config = quick(epochs=2, budget=MacBudget(0.5), rank_penalty=kind, rank=0.1)
    _, steps = recorded(wide(residual), blobs(), config)
    assert steps[-1].macs <= 0.5
    pressed = kind in (RankPenalty.HOYER, RankPenalty.NUCLEAR, RankPenalty.TAIL)
    assert any(step.rank > 0 for step in steps) == pressed


def test_a_frozen_layer_does_not_shrink(residual: nn.Module) -> None:
    start = wide(residual)
    name, layer = next(iter(low_rank_layers(start).items()))
    layer.requires_grad_(False)
    config = quick(
        epochs=1, budget=MacBudget(0.99), rank_penalty=RankPenalty.PROXIMAL, rank=1.0, cuts=1, prune_until=1.0
    )
    original = layer.s.clone()
    new = finetune(start, blobs(), config, progress=False)
    kept = low_rank_layers(new)[name].s
    torch.testing.assert_close(kept, original[: len(kept)], rtol=1e-4, atol=1e-5)


def test_penalties_without_weight_are_not_computed(residual: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("dprp.converter.training.objective.orthogonality", fail)
    _, steps = recorded(wide(residual), blobs(), quick(epochs=1, orthogonality=0.0, rank=0.0))
    assert steps[-1].orthogonality == 0.0


def test_layers_of_one_shape_are_penalised_together(residual: nn.Module) -> None:
    layers: list[LowRank] = list(low_rank_layers(wide(residual)).values())
    with torch.no_grad():
        for index, layer in enumerate(layers):
            layer.u.mul_(1 + 0.1 * index)
    together = orthogonality(layers)
    alone = torch.stack([orthogonality([layer]) for layer in layers]).sum()
    torch.testing.assert_close(together, alone)


def test_matching_brings_layers_nearer_without_labels(residual: nn.Module) -> None:
    start = convert(residual, plan_ranks(survey(residual, EXAMPLE), RankRatio(0.4), forms=[Form.SPATIAL]))
    config = quick(epochs=8, distill=1.0, matching=1.0, learning_rate=0.02, train_norms=False)
    _, steps = recorded(start, blobs(), config, teacher=residual)
    assert steps[-1].matching < 0.7 * steps[0].matching


def test_the_average_is_of_what_followed_the_last_cut() -> None:
    model = nn.Linear(1, 1, bias=False)
    average = Average(model, 0.5)
    for value in (1.0, 3.0):
        nn.init.constant_(model.weight, value)
        average.update()
    with average.applied():
        assert model.weight.item() == 2.0
    assert model.weight.item() == 3.0
    average.restart()
    with average.applied():
        assert model.weight.item() == 3.0
    for value in (5.0, 7.0, 9.0):
        nn.init.constant_(model.weight, value)
        average.update()
    average.settle()
    assert model.weight.item() == 0.5 * 6.0 + 0.5 * 9.0


def test_an_averaged_run_lands_on_its_budget_and_is_scored_as_it_comes_back(residual: nn.Module) -> None:
    config = quick(epochs=6, budget=MacBudget(0.5), average=0.9, learning_rate=0.05)
    new, steps = recorded(wide(residual), blobs(), config, evaluate_on=blobs())
    again = sum(int((new(images).argmax(1) == labels).sum()) for images, labels in blobs())
    assert steps[-1].score == pytest.approx(100 * again / 96)


def test_the_rate_rises_and_falls() -> None:
    config = quick(learning_rate=1.0, warmup=0.1)
    rates = [rate_at(step, 100, config) for step in range(1, 101)]
    assert rates[0] < 0.02
    assert max(rates) == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.001


def test_mistakes(residual: nn.Module) -> None:
    with pytest.raises(TrainingError, match="mixed precision fp16 needs a GPU"):
        finetune(wide(residual), blobs(), quick(mixed_precision="fp16"), progress=False)
    for wrong, message in (
        ({"mixed_precision": "fp8"}, "mixed precision 'fp8' is not one of no, bf16, fp16"),
        ({"cuts": 0}, "cuts 0 is below 1"),
        ({"accumulate": 0}, "accumulate 0 is below 1"),
        ({"average": 1.0}, "average 1 is not in 0..1 without 1"),
        ({"matching": -1.0}, "matching -1 is not 0 or above"),
        ({"rank": float("nan")}, "rank nan is not 0 or above"),
    ):
        with pytest.raises(TrainingError, match=message):
            quick(**wrong)


def test_the_model_that_came_is_untouched(residual: nn.Module) -> None:
    start = wide(residual)
    before = copy.deepcopy(start.state_dict())
    finetune(start, blobs(), quick(epochs=1, budget=MacBudget(0.5)), teacher=residual, progress=False)
    for name, value in start.state_dict().items():
        assert torch.equal(value, before[name]), name
