"""What the processes of one machine write, passed on while they write it."""

import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

OF_RANKS = "*/attempt_*/*/std*.log"  # torchrun's names below its --log-dir: run, restart, local rank, stream


@dataclass
class Output:
    """Rank 0's lines as they are, the other ranks' with their number on stderr, of torchrun its warnings and errors.

    torchrun's tracebacks say nothing of the training; RELIC_DEBUG=1 shows them."""

    ranks: Path  # torchrun's --log-dir
    agent: Path  # torchrun's own words
    read: dict[Path, int] = field(default_factory=dict)  # bytes of each file that are passed on

    def pass_on(self) -> None:
        for path in sorted(self.ranks.glob(OF_RANKS)):
            rank = path.parent.name
            for line in self.lines(path):
                if rank == "0":
                    print(line, file=sys.stdout if path.stem == "stdout" else sys.stderr, flush=True)
                else:
                    print(f"[{rank}] {line}", file=sys.stderr, flush=True)
        for line in self.lines(self.agent):
            if re.match(r"[WE]\d{4} |\S+: error: ", line) or os.environ.get("RELIC_DEBUG") == "1":
                print(line, file=sys.stderr, flush=True)

    def lines(self, path: Path) -> list[str]:
        """Whole lines that are new in a file. torchrun makes its files anew when a node comes or goes."""
        if not path.exists():
            return []
        read = self.read.get(path, 0)
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < read:
                read = 0
            file.seek(read)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self.read[path] = read + len(whole)
        return whole.decode(errors="replace").splitlines()
