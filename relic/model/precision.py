"""Where bfloat16 is computed natively, and the autocast that uses it."""

from contextlib import AbstractContextManager, nullcontext

import torch


def native_bfloat16(device: torch.device | str) -> bool:
    """True on GPUs since Ampere and on CPUs with AVX-512 BF16 or AMX; elsewhere bfloat16 is emulated and slow."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    capabilities = torch.backends.cpu.get_cpu_capability(), torch.cpu._is_avx512_bf16_supported()
    return capabilities[0] == "AVX512" and capabilities[1]


def autocast(device: torch.device | str) -> torch.autocast:
    """bfloat16 matrix products and convolutions where the device has them, float32 otherwise."""
    device = torch.device(device)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=computed_in(device) is not None)


def computed_in(device: torch.device | str) -> torch.dtype | None:
    """What `autocast` computes matrix products in; None where it leaves them as they are."""
    return torch.bfloat16 if native_bfloat16(device) else None


def full_precision(device: torch.device | str) -> AbstractContextManager[object]:
    """What computes in its tensors' own precision though an autocast is on around it."""
    kind = torch.device(device).type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
