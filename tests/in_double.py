"""Everything that relic and DeepSpeed compute, in float64, so that what differs is not rounding."""

import torch

from relic.model import control, transformer


def turn_on() -> None:
    """For the rest of the process."""
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    sinusoid, encode = transformer.sinusoid, control.ControlEncoder.forward
    transformer.sinusoid = lambda timesteps, width: sinusoid(timesteps, width).double()
    control.ControlEncoder.forward = lambda self, frames: encode(self, frames.double())  # type: ignore[method-assign]


def turn_on_deepspeed() -> None:
    """Its masters, pieces and messages, which it offers up to float32 only."""
    import deepspeed
    from deepspeed.runtime import base_optimizer, engine

    from relic.parallel import zero

    begin, settings = deepspeed.zero.Init.__init__, zero.settings

    def in_double(self, *args, **options):
        begin(self, *args, **options)
        self.dtype = torch.float64

    deepspeed.zero.Init.__init__ = in_double
    base_optimizer.ZeROOptimizer._configure_master_weights = lambda self, *args, **options: torch.float64
    engine.DeepSpeedEngine.get_data_types = lambda self: (torch.float64, torch.float64)
    engine.DeepSpeedEngine.communication_data_type = property(lambda self: torch.float64)

    def without_scatter(*args, **options):
        found = settings(*args, **options)
        found["zero_optimization"]["reduce_scatter"] = False  # which takes no float64
        return found

    zero.settings = without_scatter
