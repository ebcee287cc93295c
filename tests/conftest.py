"""What every test runs under."""

import torch

torch.set_num_threads(1)  # tests are small; more threads only wait for one another
