"""Flow matching."""

import torch

from relic.model import flow


def test_the_velocity_leads_back_to_the_clean_latents():
    clean, noise = torch.randn(2, 2, 3, 4, 5, 6).unbind(0)
    timesteps = torch.tensor([[1000.0, 500, 250], [1, 937.5, 625]])
    noisy = flow.add_noise(clean, noise, timesteps)
    torch.testing.assert_close(flow.clean_of(noisy, noise - clean, timesteps), clean, atol=1e-5, rtol=0)


def test_timestep_zero_is_clean_and_1000_is_noise():
    clean, noise = torch.ones(1, 2, 1, 1, 1), torch.zeros(1, 2, 1, 1, 1)
    noisy = flow.add_noise(clean, noise, torch.tensor([[0.0, 1000.0]]))
    assert noisy.flatten().tolist() == [1.0, 0.0]


def test_the_students_timesteps_are_1000_750_500_250_shifted_by_5():
    times = flow.schedule(4, 5.0)
    torch.testing.assert_close(times, torch.tensor([1000.0, 937.5, 833.3333, 625.0, 0.0]))


def test_a_shift_of_one_changes_nothing():
    share = torch.linspace(0, 1, 11)
    torch.testing.assert_close(flow.shifted(share, 1.0), share * 1000)
