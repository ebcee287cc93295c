"""How much memory an import and an export of large weights take: python benchmarks/weights.py --json

Makes a random checkpoint in diffusers' layout (4 GB in bfloat16, files of 1 GB), imports it and exports it again, each
in a process of its own, and compares the growth of that process's resident memory with the largest file.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from relic.model import config, tensors, wan, weights

MEASURED = """
import re, sys, time
from pathlib import Path
from relic.model import wan
def resident():  # the peak so far; getrusage's would be the parent's
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
source, out, shard_bytes, before = Path(sys.argv[2]), Path(sys.argv[3]), int(float(sys.argv[4])), resident()
began = time.monotonic()
if sys.argv[1] == "import":
    wan.import_weights([source], out)
else:
    wan.export_weights(source, out, shard_bytes=shard_bytes)
print(resident() - before, time.monotonic() - began)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--shard-gigabytes", type=float, default=1.0)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table row")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), options.gigabytes * 1e9, options.shard_gigabytes * 1e9)
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        print(" | ".join(f"{name} {value}" for name, value in result.items()))


def measure(folder: Path, num_bytes: float, shard_bytes: float) -> dict[str, float]:
    """Bytes and seconds of both ways, and the growth of memory over the largest file."""
    whole, published, again = (folder / name for name in ("whole", "published", "again"))
    make(whole, num_bytes)
    export_growth, export_s = run("export", whole, published, shard_bytes)
    size = (whole / "model.safetensors").stat().st_size
    largest = max(path.stat().st_size for path in published.glob(f"{wan.STEM}*.safetensors"))
    (whole / "model.safetensors").rename(folder / "kept.safetensors")
    import_growth, import_s = run("import", published, again, shard_bytes)
    same = (folder / "kept.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    return {
        "checkpoint_bytes": size,
        "largest_file_bytes": largest,
        "import_memory_bytes": import_growth,
        "import_memory_over_largest_file": round(import_growth / largest, 3),
        "import_s": round(import_s, 1),
        "export_memory_bytes": export_growth,
        "export_memory_over_largest_file": round(export_growth / largest, 3),
        "export_s": round(export_s, 1),
        "exact": same,
    }


def make(out: Path, num_bytes: float) -> None:
    """A folder of random bfloat16 weights of about so many bytes: as many blocks of Wan 1.3B as that takes."""
    sizes = {"width": 1536, "ffn": 8960, "heads": 12, "text_width": 4096, "text_tokens": 512, "text_vocabulary": 0}
    counts = [sum(torch.Size(shape).numel() for shape in wan.expected(of(sizes, n)).values()) for n in (1, 2)]
    layers = max(1, round((num_bytes / 2 - counts[0]) / (counts[1] - counts[0])) + 1)
    cfg = of(sizes, layers)
    out.mkdir()
    random = torch.Generator().manual_seed(0)
    kinds = {name: (torch.bfloat16, shape) for name, shape in wan.expected(cfg).items()}
    tensors.write(
        out / "model.safetensors", kinds, lambda name: torch.randn(kinds[name][1], generator=random).bfloat16()
    )
    weights.write_config("transformer", cfg, out / "config.json")


def of(sizes: dict[str, int], layers: int) -> config.Transformer:
    return config.Transformer(layers=layers, trained_frames=21, frames=21, **sizes)  # type: ignore[arg-type]


def run(action: str, source: Path, out: Path, shard_bytes: float) -> tuple[int, float]:
    command = [sys.executable, "-c", MEASURED, action, str(source), str(out), str(shard_bytes)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    growth, seconds = done.stdout.split()
    return int(growth), float(seconds)


if __name__ == "__main__":
    main()
