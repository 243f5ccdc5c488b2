"""Learning by diffusion: what CrysDiff promises of predictions, and intervals that hold what they say."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from crystalml.crystal import CrystalBatch
from crystalml.errors import InputError
from crystalml.learners import LEARNERS, Diffusion, Regression, _bars, as_learner, method_of, quantiles
from crystalml.models.cspnet import CSPNetConfig
from crystalml.models.fourierframenet import FourierFrameNetConfig
from crystalml.models.model import ModelConfig
from crystalml.models.property_head import DiffusionHead, Estimate, LinearHead, PropertyConfig, TwoLayerHead
from crystalml.models.scalar_head import ScalarNoiseHead
from crystalml.noise.gaussian import property_ddpm
from crystalml.property import PropertyPredictor
from crystalml.testing import assert_symmetric, perovskite, rand_crystals
from crystalml.training.fit import FitConfig, Run

ENCODER = FourierFrameNetConfig(16, 1, 1, 2, 4, 8, 8, 8, 4, 8, 4.0, chiral=False)


def noisy(count: int, seed: int, spread: float = 0.3) -> tuple[CrystalBatch, np.ndarray]:
    """Perovskites of many sizes; the property is the lattice constant, standardised, and noise."""
    g = torch.Generator().manual_seed(seed)
    scale = 0.9 + 0.2 * torch.rand(count, generator=g, dtype=torch.float64)
    noise = torch.randn(count, generator=g, dtype=torch.float64)
    x = perovskite()
    batch = CrystalBatch.cat([x.replace(lattice=x.lattice * s) for s in scale])
    return batch, (17 * (scale - 1) + spread * noise).numpy()


@pytest.fixture(scope="module", params=["diffusion", "regression"])
def learned(request: pytest.FixtureRequest) -> PropertyPredictor:
    learner = PropertyPredictor(ENCODER, request.param, epochs=25, freeze=True, primitive=False, lr=5e-3)
    return learner.fit(*noisy(100, 0), validation=noisy(300, 7))


def test_intervals_hold_what_they_say(learned: PropertyPredictor) -> None:
    x, y = noisy(200, 1)
    value, std, levels = learned.predict(x, return_std=True, quantiles=(0.05, 0.5, 0.95))
    low, median, high = levels.T
    assert (low < median).all() and (median < high).all() and std.shape == (200,)
    assert np.abs(value - y).mean() < 0.6 * np.abs(y - y.mean()).mean()
    assert ((low <= y) & (y <= high)).mean() == pytest.approx(0.9, abs=0.06)
    assert (y < median).mean() == pytest.approx(0.5, abs=0.1)
    assert (np.abs(y - value) < std).mean() == pytest.approx(0.68, abs=0.1)


def test_a_file_keeps_the_distribution(learned: PropertyPredictor, tmp_path: Path) -> None:
    x, _ = noisy(4, 2)
    learned.save(tmp_path / "m.safetensors")
    again = PropertyPredictor.load(tmp_path / "m.safetensors")
    assert again.method == learned.method
    for kept, before in zip(
        again.predict(x, True, (0.1, 0.9)), learned.predict(x, True, (0.1, 0.9)), strict=True
    ):
        np.testing.assert_allclose(kept, before, rtol=1e-5, atol=1e-6)


def test_one_chain_is_a_draw_and_many_are_a_median() -> None:
    x, y = noisy(80, 0)
    learned = PropertyPredictor(ENCODER, "diffusion", epochs=20, freeze=True, primitive=False, lr=5e-3).fit(
        x, y
    )
    one, many, more = (learned.predict(x, n_samples=n) for n in (1, 20, 200))
    assert np.abs(many - more).mean() < 0.2 * np.abs(one - more).mean()
    with pytest.raises(InputError, match="n_samples"):
        learned.predict(x, n_samples=0)
    span = np.ptp(y)
    assert one.min() >= y.min() - 0.21 * span and one.max() <= y.max() + 0.21 * span


@pytest.mark.parametrize("encoder", [ENCODER, CSPNetConfig(16, 2, 4, time_dim=8)])
def test_predictions_do_not_see_frame_origin_order_or_company(
    encoder: FourierFrameNetConfig | CSPNetConfig,
) -> None:
    """Methods §6: 1e-5 for rotation, translation and permutation, 1e-6 for the batch, at a fixed seed."""
    torch.manual_seed(0)
    target = PropertyConfig("y", mean=2.0, std=3.0, head="diffusion")
    model = ModelConfig(encoder, noise=False, target=target).build().double().eval()
    head = model.property_head
    assert isinstance(head, DiffusionHead)
    with torch.no_grad():  # a head that starts at zero says the same of all crystals
        head.noise.out.weight.normal_(0, 0.3)
        head.bounds.copy_(torch.tensor([-3.0, 3.0]))

    def says(x: CrystalBatch) -> dict[str, Tensor]:
        with torch.no_grad():
            found = Diffusion().estimate(head, model(x).features.graph)
        assert found.draws is not None
        return {"value": found.value, "draws": found.draws}

    x = rand_crystals(0, 5)
    assert float(says(x)["value"].std()) > 1e-3
    kinds = {"value": "invariant", "draws": "invariant"}
    assert_symmetric(says, x, kinds)  # type: ignore[arg-type]


def test_a_pretrained_encoder_lacks_the_head_alone() -> None:
    config = CSPNetConfig(16, 2, 4, time_dim=8)
    pretrained = ModelConfig(config).build()
    tuned = replace(pretrained.config, target=PropertyConfig(head="diffusion")).build()
    found = tuned.load_state_dict(pretrained.state_dict(), strict=False)
    assert found.missing_keys and all(key.startswith("property_head.") for key in found.missing_keys)
    assert not found.unexpected_keys


def test_a_pretrained_encoder_moves_less_than_its_head() -> None:
    """Adam's first step is as long as its rate, for any gradient."""
    model = ModelConfig(ENCODER, noise=False, target=PropertyConfig(head="diffusion")).build()
    run = Run(model, FitConfig(steps=10, lr=1e-3, slow=0.1, warmup=0.0, clip=1e9), None)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    run.step({"loss": sum((p * torch.sign(p.detach()) + p).sum() for p in model.parameters())})  # type: ignore[dict-item, misc]
    for name, p in model.named_parameters():
        share = 0.1 if name.startswith("encoder.") else 1.0
        assert float((p - before[name]).abs().max()) == pytest.approx(1e-3 * share, rel=1e-2), name


def test_the_rate_of_the_encoder() -> None:
    learner = Diffusion()
    pretrained = PropertyPredictor("dao-g", learner)._training(learner)
    assert pretrained.slow == learner.slow and pretrained.lr == 1e-3
    assert PropertyPredictor(ENCODER, learner)._training(learner).slow == 1
    assert PropertyPredictor("dao-g", learner, encoder_lr=5e-4)._training(learner).slow == 0.5


def test_chains_start_from_what_regression_says() -> None:
    """The same fit as by regression, then a noise head on features and guess that stay as they are."""
    x, y = noisy(60, 0)
    for freeze in (False, True):
        found = []
        for method in ("regression", "diffusion"):
            learner = PropertyPredictor(ENCODER, method, epochs=3, freeze=freeze, primitive=False)
            head = learner.fit(x, y).model_.property_head
            assert isinstance(head, TwoLayerHead)
            with torch.no_grad():
                found.append(head(learner.model_(x.to("cpu", torch.float32)).features.graph).value)
        torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-6)
        assert isinstance(head, DiffusionHead) and head.unit != 1
        assert [epoch.epoch for epoch in learner.history_] == list(range(1, len(learner.history_) + 1))
        assert len(learner.history_) > 3 and learner.history_[-1].share == 1


class Oracle(ScalarNoiseHead):
    """Knows how the guess errs: the first feature, in units of its usual error."""

    def __init__(self) -> None:
        super().__init__(4)
        self.of_features = torch.nn.Identity()  # type: ignore[assignment]

    def read(self, base: Tensor, y: Tensor, t: Tensor) -> Tensor:
        return property_ddpm().noise(y, base[:, :1].expand_as(y), t)


def test_chains_around_a_guess_end_within_bounds_of_the_property() -> None:
    head, h = DiffusionHead(4), torch.tensor([[-1.0, 0, 0, 0], [0.5, 0, 0, 0], [3.0, 0, 0, 0]])
    head.noise = Oracle()
    with torch.no_grad():
        head.out.bias.fill_(1.5)
        head.unit.fill_(0.1)
        head.bounds.copy_(torch.tensor([-1.0, 1.7]))
        found = Diffusion().estimate(head, h)
    assert found.draws is not None
    truth = torch.tensor([1.4, 1.55, 1.7])
    torch.testing.assert_close(found.value, truth, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.draws, truth[:, None].expand_as(found.draws), rtol=0, atol=1e-4)


def test_the_prior_of_the_paper_is_the_mean() -> None:
    x, y = noisy(40, 0)
    learned = PropertyPredictor(ENCODER, Diffusion(prior="mean"), epochs=2, primitive=False).fit(x, y)
    head = learned.model_.property_head
    assert isinstance(head, DiffusionHead) and not head.out.weight.any() and head.unit == 1
    assert head.noise.out.weight.any() and len(learned.history_) == 2
    with pytest.raises(InputError, match="mean"):
        Diffusion(joint=True)


def test_joint_diffusion_teaches_the_crystal_too() -> None:
    x, y = noisy(24, 0)
    start = ModelConfig(CSPNetConfig(8, 1, 2, 8, "log"), centered=True).build()
    learned = PropertyPredictor(
        start, Diffusion(prior="mean", joint=True), epochs=2, primitive=False, patience=9
    ).fit(x, y)
    assert np.isfinite(learned.predict(x)).all()
    model, before = learned.model_, start.state_dict()
    assert model.config.noise and model.config.centered
    for name in ("noise_head.lattice.weight", "noise_head.frac.weight", "encoder.embed.mix.weight"):
        assert not torch.equal(model.state_dict()[name], before[name]), name
    alone = PropertyPredictor(start, Diffusion(), epochs=1, primitive=False).fit(x, y)
    assert not alone.model_.config.noise


@pytest.mark.parametrize(
    ("encoder", "freeze", "said"),
    [(ENCODER, False, "noise heads"), (CSPNetConfig(8, 1, 2, 8), True, "freeze")],
)
def test_joint_diffusion_needs_noise_heads_and_an_encoder_that_learns(
    encoder: FourierFrameNetConfig | CSPNetConfig, freeze: bool, said: str
) -> None:
    x, y = noisy(12, 0)
    joint = Diffusion(prior="mean", joint=True)
    with pytest.raises(InputError, match=said):
        PropertyPredictor(encoder, joint, freeze=freeze, primitive=False).fit(x, y)


def test_bars_are_not_judged_on_crystals_they_know() -> None:
    """With as many features as a third of the crystals a fitted bar finds patterns where there are none."""
    rng = np.random.default_rng(0)
    features, error = rng.normal(size=(400, 120)), rng.normal(size=400)
    bar, scale = _bars(features, error)
    assert np.ptp(scale) == 0 and bar(torch.zeros(1, 120)).item() == pytest.approx(1.0, abs=0.1)


def test_bars_tell_large_errors_from_small() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(400, 5))
    true = np.exp(features[:, 0])
    bar, scale = _bars(features, true * rng.normal(size=400))
    for width in (scale, bar(torch.from_numpy(features).float()).numpy()):
        assert np.corrcoef(np.log(width), np.log(true))[0, 1] > 0.9


def test_ridge_without_validation_is_a_normal_distribution() -> None:
    found = Estimate(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 1.0]))
    low, median, high = quantiles(LinearHead(3, 0), found, (0.025, 0.5, 0.975)).T
    torch.testing.assert_close(median, found.value)
    assert found.std is not None
    torch.testing.assert_close(high - low, 2 * 1.95996 * found.std, rtol=1e-3, atol=0)


def test_a_strategy_or_its_name() -> None:
    assert as_learner("diffusion") == Diffusion() and as_learner(Diffusion(head="affine")).head == "affine"  # type: ignore[attr-defined]
    for name, learner in LEARNERS.items():
        assert method_of(learner.target("y", "", 0, 1)) == name
    assert method_of(Diffusion(head="paper").target("y", "", 0, 1)) == Diffusion(head="paper")
    assert Regression().slow == 1 > Diffusion().slow
    x, _ = noisy(12, 0)
    with pytest.raises(InputError, match="for numbers"):
        PropertyPredictor(ENCODER, "diffusion").fit(x, ["a", "b"] * 6)
