from collections.abc import Callable

import torch

from crystalml.guidance import EnergyGuidance
from crystalml.models.model import CrystalModel
from crystalml.testing import rand_crystals, random_rotation

Tiny = Callable[..., CrystalModel]


def test_gradients_are_those_of_the_intermediate_energy(tiny_model: Tiny) -> None:
    model, x = tiny_model(dtype=torch.float64), rand_crystals(0, 2, max_atoms=3)
    t, h = torch.tensor([3, 9]), 1e-5
    pull = EnergyGuidance(model, 2.0, clip=1e9)(x, t)
    assert pull.frac is not None and pull.lattice is not None
    for field, gradient in (("frac", pull.frac), ("lattice", pull.lattice)):
        value = getattr(x, field)
        for place in [(0, *[1] * (value.dim() - 1)), (1, *[0] * (value.dim() - 1))]:
            up, down = value.clone(), value.clone()
            up[place] += h
            down[place] -= h
            rise = (
                model.free_energy(x.replace(**{field: up}), t)
                - model.free_energy(x.replace(**{field: down}), t)
            ).sum()
            torch.testing.assert_close(gradient[place], 2 * rise.detach() / (2 * h), rtol=1e-4, atol=1e-8)


def test_the_lattice_pull_turns_with_the_crystal(tiny_model: Tiny) -> None:
    model, x, q = tiny_model(dtype=torch.float64), rand_crystals(1, 3), random_rotation(0)
    guide, t = EnergyGuidance(model, 1.0), torch.tensor([2, 2, 2])
    plain, turned = guide(x, t), guide(x.replace(lattice=x.lattice @ q.T), t)
    assert plain.lattice is not None and turned.lattice is not None
    torch.testing.assert_close(turned.lattice, plain.lattice @ q.T)


def test_long_gradients_are_shortened_crystal_by_crystal(tiny_model: Tiny) -> None:
    model, x = tiny_model(dtype=torch.float64), rand_crystals(2, 8)
    x = x[torch.nonzero(x.num_atoms > 1)[:, 0]]  # a lone atom feels no force
    t = torch.full((len(x),), 5)
    free, clipped = EnergyGuidance(model, 1.0, clip=1e9)(x, t), EnergyGuidance(model, 1.0, clip=1e-3)(x, t)
    assert free.frac is not None and clipped.frac is not None
    for i in range(len(x)):
        mine = x.index == i
        torch.testing.assert_close(clipped.frac[mine].norm(), torch.tensor(1e-3, dtype=torch.float64))
        cosine = torch.nn.functional.cosine_similarity(
            free.frac[mine].flatten(), clipped.frac[mine].flatten(), dim=0
        )
        assert cosine > 1 - 1e-9
