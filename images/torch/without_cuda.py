"""Makes torch's wheel with CUDA one that needs no CUDA, for an image without GPUs where the CPU's wheel cannot be had.

The wheel's libraries name 2.7 GB of NVIDIA's and are not loaded without them. The two small ones that are asked whether
there is a GPU stay real (packages nvidia-cuda-runtime, nvidia-cuda-cupti); for the others stands one whose every
function returns an error. Run it with the Python whose torch is meant; needs gcc and binutils.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

STUB = "librelic_no_cuda.so"
NVIDIA = re.compile(r"(cu|nccl|nvrtc|nvshmem)\w+")  # what NVIDIA's functions are called
COMPILING = ("include", "share")  # of torch's folders: what only programs compiled against it need


def main() -> None:
    (torch,) = (Path(place, "torch") for place in sys.path if Path(place, "torch").is_dir())
    libraries = sorted((torch / "lib").glob("*.so*"))
    kept = [*libraries, *(torch.parent / "nvidia").rglob("*.so*")]
    defined = {name for name, _ in symbols(kept, "--defined-only")}
    functions = {(n, v) for n, v in symbols(libraries, "--undefined-only") if NVIDIA.fullmatch(n) and n not in defined}
    missing = needed(libraries) - {path.name for path in kept} - system()
    stub(functions, missing, torch / "lib")
    for name in COMPILING:
        shutil.rmtree(torch / name, ignore_errors=True)
    (metadata,) = torch.parent.glob("torch-*.dist-info/METADATA")  # by which pip would install them
    metadata.write_text(re.sub(r"Requires-Dist: (nvidia|cuda|triton)\b.*\n", "", metadata.read_text()))


def said(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def symbols(libraries: list[Path], option: str) -> set[tuple[str, str]]:
    """Names, and their versions or nothing."""
    return set(re.findall(r" [A-Z] (\w+)(?:@+(\S+))?", said("nm", "-D", option, *libraries)))


def needed(libraries: list[Path]) -> set[str]:
    """The names of the libraries that these are linked to."""
    return set(re.findall(r"\(NEEDED\).*\[(.+)\]", said("readelf", "-d", *libraries)))


def system() -> set[str]:
    return set(re.findall(r"^\s+(\S+) \(", said("ldconfig", "-p"), re.MULTILINE))


def stub(functions: set[tuple[str, str]], names: set[str], folder: Path) -> None:
    """One library under many names, beside torch's own, where these look first."""
    nodes = {version: [name for name, of in sorted(functions) if of == version] for _, version in functions if version}
    with tempfile.TemporaryDirectory() as place:
        source, versions = Path(place, "stub.c"), Path(place, "stub.map")
        source.write_text("".join(f"int {name}(void) {{ return 1; }}\n" for name, _ in sorted(functions)))
        versions.write_text("".join(f"{version} {{ {'; '.join(of)}; }};\n" for version, of in sorted(nodes.items())))
        said("gcc", "-shared", "-w", f"-Wl,--version-script={versions}", "-o", folder / STUB, source)
    for name in names:
        (folder / name).symlink_to(STUB)


if __name__ == "__main__":
    main()
