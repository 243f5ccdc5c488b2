import pytest
import torch

from crystalml.noise.schedule import cosine_betas, geometric_sigmas, linear_betas


def test_terminal_levels_are_the_published_ones() -> None:
    assert (1 - linear_betas()).prod().item() == pytest.approx(4.04e-5, rel=1e-2)
    assert (1 - cosine_betas()).prod().item() == pytest.approx(2.4e-10, rel=5e-2)
    sigmas = geometric_sigmas()
    assert sigmas[1].item() == pytest.approx(0.005) and sigmas[-1].item() == pytest.approx(0.5)


def test_entry_zero_is_clean_and_tables_have_t_plus_one_entries() -> None:
    for table in (linear_betas(50), cosine_betas(50), geometric_sigmas(50)):
        assert table.shape == (51,) and table[0] == 0 and table.dtype == torch.float64


def test_noise_grows_with_time() -> None:
    assert (geometric_sigmas(100).diff() > 0).all()
    assert ((1 - cosine_betas(100)).cumprod(0).diff() < 0).all()
    ratio = geometric_sigmas(100)[2:] / geometric_sigmas(100)[1:-1]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))
