"""A training's state on disk or in S3, written while the training goes on; a kill at any moment leaves a whole one.

    PLACE/0000000120-5f3a9c11-0/rank-0000.safetensors   what process 0 wrote: a plain safetensors file of fragments
                                rank-0000.json          what is in it, its size, its sha256; comes after it
                                …
                                manifest.json           all of these in one; comes last

The format is ours, by parameter (train/fragments.py), and not DeepSpeed's universal checkpoint: that one is made of a
checkpoint by an offline conversion, knows nothing of what DeepSpeed does not hold (the average, a training of one
process), and has no hashes. Here every save can be read by any number of processes under any ZeRO stage, by
`safetensors` alone if need be.

Everything random in a step is a function of (seed, step, row), and so is what the loader gives. So the state is
tensors, one integer and a few facts; no generator is saved, nor a place in the data.

The step waits for a copy to host memory (pinned where there is CUDA, and used again). A thread writes it. There are no
collectives in threads: process 0 looks into the place until every process's index is there.
"""

import json
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from relic import artifacts, place
from relic.artifacts import MANIFEST
from relic.parallel.mesh import Mesh
from relic.train import saved
from relic.train.config import Checkpointing
from relic.train.fragments import Fragment, Image, Part, shared
from relic.train.watch import Watch
from relic.verdict import Stopped

PATIENCE_S = 1.0  # that a save waits for the last one before it says so
READERS = 8  # threads that fill fragments: a place in S3 answers late, but many at once


class Checkpoints:
    """The checkpoints of one training in a place of their own (`Checkpointing.place`). All processes make it, load,
    save and close at the same time."""

    def __init__(
        self,
        where: str,
        parts: Sequence[Part],
        mesh: Mesh,
        cfg: Checkpointing,
        *,
        facts: Mapping[str, Any] | None = None,
    ):
        """`facts` are JSON values that are saved too; `load` puts the saved ones over them."""
        self.parts, self.mesh, self.cfg, self.facts = parts, mesh, cfg, dict(facts or {})
        self.place = place.opened(where)
        # files of a call that was killed while writing are told apart from this one's
        self.attempt: str = mesh.said_by_first(secrets.token_hex(4))
        self.saves, self.seconds = 0, 0.0  # the latter: how long a step waited for the last save
        self.saved_at = time.monotonic()
        self.image: Image | None = None
        self.writer: threading.Thread | None = None
        self.failure: Exception | None = None
        self.late = False  # whether it was said that writing takes longer than `every_s`
        self.damaged: list[str] = []

    def load(self) -> int:
        """Restores the newest whole checkpoint and returns the step to go on with; 0 where there is none.

        ValueError where it holds other tensors than the parts: the configuration was changed."""
        found, self.damaged = saved.newest(self.place, self.mesh)
        if found is None:
            return 0
        fragments = self._fragments()
        found.check(self.mesh.said_by_all({f.name: (f.shape, f.data.dtype) for f in fragments}))

        def fill(fragment: Fragment) -> None:
            fragment.data.copy_(found.read(fragment.name, fragment.start, fragment.stop))

        with ThreadPoolExecutor(READERS) as pool:
            list(pool.map(fill, fragments))
        for part in self.parts:
            part.restored()
        self.facts |= found.facts
        if self.mesh.is_first:
            print(f"going on after step {found.step}, by the checkpoint {found.name} in {self.place.uri}", flush=True)
        return found.step

    @property
    def due(self) -> bool:
        """By this process's clock."""
        return time.monotonic() - self.saved_at >= self.cfg.every_s

    def after(self, step: int, watch: Watch) -> None:
        """The end of a step: saves where it is time; asked to end, saves and raises `Stopped`, in all processes."""
        stop, due = watch.agreed((watch.stopping, self.due))
        if stop or due:
            with watch.pause():
                watch.flush()  # a call that goes on from here logs later steps only
                self.save(step)
        if stop:
            self.close()
            raise Stopped(f"stopped with step {step} saved; the same command goes on")

    def save(self, step: int) -> None:
        """Everything up to, not including, `step` is done. Returns when the state may change again.

        What went wrong in writing the last one is raised here, before anything is done."""
        began = time.monotonic()
        self._finish()
        mine = shared(self._fragments(), self.mesh.rank, self.mesh.world)
        if self.image is None:
            self.image = Image(mine, pinned=self.mesh.device.startswith("cuda"))
        self.image.fill(mine)
        head = {"step": step, "world": self.mesh.world, "facts": json.loads(json.dumps(self.facts))}
        name = f"{step:010d}-{self.attempt}-{self.saves}"
        self.saves += 1
        self.writer = threading.Thread(target=self._written, args=(self.image, name, head), daemon=True)
        self.writer.start()
        self.saved_at = time.monotonic()
        self.seconds = self.saved_at - began

    def close(self) -> None:
        """Waits for the last save."""
        self.late = True  # nothing worth saying
        self._finish()

    def _fragments(self) -> list[Fragment]:
        return [fragment for part in self.parts for fragment in part.fragments()]

    def _finish(self) -> None:
        if self.writer is None:
            return
        self.writer.join(PATIENCE_S)
        if self.writer.is_alive() and not self.late and self.mesh.is_first:
            print("a checkpoint is due and the last one is still being written; the training waits for it", flush=True)
            self.late = True
        self.writer.join()
        self.writer, failure, self.failure = None, self.failure, None
        if failure is not None:
            raise failure

    # In the thread

    def _written(self, image: Image, name: str, head: dict[str, Any]) -> None:
        try:
            file = f"rank-{self.mesh.rank:04d}.safetensors"
            digest = self.place.write(f"{name}/{file}", image.bytes)
            index = {"file": file, "bytes": len(image.bytes), "sha256": digest, "tensors": image.index()}
            self._write_json(f"{name}/rank-{self.mesh.rank:04d}.json", index)
            if self.mesh.is_first:
                manifest = {**head, "files": self._indexes(name)}
                self._write_json(f"{name}/{MANIFEST}", {**manifest, "sha256": artifacts.digest(manifest)})
                self._retain(name)
        except Exception as error:  # raised again by the next call of the training
            error.add_note(f"while the checkpoint {name} was written to {self.place.uri}")
            self.failure = error

    def _write_json(self, name: str, value: Any) -> None:
        self.place.write(name, memoryview(json.dumps(value).encode()))

    def _indexes(self, name: str) -> list[dict[str, Any]]:
        """Of all processes, as soon as they are there."""
        wanted = {f"{name}/rank-{rank:04d}.json" for rank in range(self.mesh.world)}
        began, pause = time.monotonic(), 0.01
        while missing := wanted - set(self.place.files()):
            if time.monotonic() - began > self.mesh.cfg.timeout_s:
                raise TimeoutError(f"{self.place.uri}: {min(missing)} is not there after {self.mesh.cfg.timeout_s:g} s")
            time.sleep(pause)
            pause = min(2 * pause, 2.0)
        return [json.loads(self.place.read(file)) for file in sorted(wanted)]

    def _retain(self, newest: str) -> None:
        """Removes what the configuration does not keep, and what is not whole; never the newest, nor what comes after
        it, which other processes may be writing already."""
        files = self.place.files()
        names = {saved.folder_of(file) for file in files}
        whole = {saved.folder_of(file) for file in files if file.endswith(f"/{MANIFEST}")} - {*self.damaged, newest}
        kept = {newest, *sorted(whole, reverse=True)[: self.cfg.keep_last - 1]}
        if self.cfg.keep_every:
            kept |= {name for name in whole if saved.step_of(name) % self.cfg.keep_every == 0}
        over = {name for name in names if name in self.damaged or saved.step_of(name) < saved.step_of(newest)}
        for name in over - kept:
            self.place.remove(name)
