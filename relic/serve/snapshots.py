"""Snapshots: walks that one server puts by and another goes on with.

PLACE/SESSION/NUMBER holds state.safetensors and, written after it, manifest.json: size and sha256 of the state, what
the session was, and a signature of all that by the secret which our servers share. So nothing is restored that they
have not written, and nothing that is damaged. NUMBER is the time in milliseconds: the newest is the last, and what is
too old is known by its name.

Who goes on with a walk reads and verifies it, claims it by a file that only one can create, looks whether the manifest
is still there, and removes all of it afterwards, the manifest first. So of any number of servers one goes on. A claim
holds until the time in it: who cannot go on gives it back, and that of a server which died is void soon.
"""

import hashlib
import hmac
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from relic import place
from relic.artifacts import MANIFEST, digest
from relic.model import tensors
from relic.serve.access import PREFIX
from relic.serve.world import State

VERSION = 1
STATE = "state.safetensors"
CLAIM = "claim"
CLAIM_S = 15.0  # longer than the engine takes to restore a walk, shorter than a lease
READ = 2**26  # bytes that are read at once


class Unusable(ValueError):
    """A snapshot that cannot be gone on from; one sentence says why."""


@dataclass(frozen=True)
class Snapshot:
    """What the manifest of a snapshot says."""

    folder: str
    session: dict[str, Any]  # facts of the session
    walk: dict[str, Any]  # facts of its walk's state
    bytes: int
    sha256: str


class Snapshots:
    def __init__(self, where: place.Place, *, export: str, sign: Callable[[str], str], lasts_s: float):
        """`sign` is the servers' own; after `lasts_s` seconds nobody can want a snapshot any more."""
        self.place, self.export, self.sign, self.lasts_s = where, export, sign, lasts_s

    def save(self, identity: str, state: State, session: dict[str, Any]) -> str:
        """The folder in which the walk now lies."""
        parts = list(tensors.parts(state.tensors))
        folder = f"{identity}/{round(1e3 * time.time()):015d}"
        sha256 = self.place.write(f"{folder}/{STATE}", *parts)
        said = {
            "version": VERSION, "folder": folder, "export": self.export, "session": session, "walk": state.facts,
            "bytes": sum(map(len, parts)), "sha256": sha256,
        }  # fmt: skip
        manifest = json.dumps({**said, "signature": self._signature(said)}, indent=1)
        self.place.write(f"{folder}/{MANIFEST}", memoryview(manifest.encode()))
        return folder

    def find(self, identity: str) -> Snapshot | None:
        """The newest snapshot of a session; None where there is none. `Unusable` where it is not ours to go on with."""
        if not re.fullmatch(r"([\w-]+\.)?[\w-]+", identity):
            return None  # no session is called so, and a store might take it for a path
        folders = [name.rpartition("/")[0] for name in self.place.files(identity) if name.endswith(f"/{MANIFEST}")]
        if not folders:
            return None
        said = self._manifest(folders[-1])
        signature = str(said.pop("signature", "")).encode(errors="replace")
        if not hmac.compare_digest(signature, self._signature(said).encode()) or said["folder"] != folders[-1]:
            raise Unusable("the saved walk is not signed by this server's secret; start another one")
        if (said["version"], said["export"]) != (VERSION, self.export):
            raise Unusable(f"the saved walk is of another model ({said['export'][:PREFIX]}); start another one")
        return Snapshot(folders[-1], said["session"], said["walk"], said["bytes"], said["sha256"])

    def claim(self, snapshot: Snapshot, name: str) -> tuple[State, str] | None:
        """The state of a walk that is from now on this server's, and its claim; None where another one was first.

        `name` is this server's, for whoever looks into the folder."""
        if self._next_claim(snapshot) is None:  # which spares the reading
            return None
        state = self._read(snapshot)
        claim = self.take(snapshot, name)
        return None if claim is None else (state, claim)

    def take(self, snapshot: Snapshot, name: str) -> str | None:
        """The claim by which a snapshot is this server's for `CLAIM_S` seconds; None where another one was first."""
        claim = self._next_claim(snapshot)
        if claim is None or not self.place.write_if_absent(claim, f"{time.time() + CLAIM_S:.0f} {name}".encode()):
            return None
        if not self._is_there(snapshot):
            return None  # another server has gone on with it and has removed that claim
        return claim

    def holds(self, claim: str) -> bool:
        """Whether no other server may have claimed the walk since."""
        return int(self.place.read(claim).partition(b" ")[0]) > time.time()

    def give_back(self, claim: str) -> None:
        """Lets another server claim the walk."""
        self.place.write(claim, memoryview(b"0"))

    def remove(self, folder: str) -> None:
        """A snapshot, and those of its session that are older: without it one of them would be the newest."""
        for one in self._folders(folder.rpartition("/")[0]):
            if one <= folder:
                self.place.remove(one)

    def sweep(self) -> int:
        """Removes what nobody came back for; the number of folders."""
        least = 1e3 * (time.time() - self.lasts_s)
        old = [folder for folder in self._folders() if int(folder[-15:]) < least]
        for folder in old:
            self.place.remove(folder)
        return len(old)

    def _folders(self, under: str = "") -> list[str]:
        """Of all snapshots, or of a session's, the oldest first."""
        folders = {name.rpartition("/")[0] for name in self.place.files(under)}
        return sorted(folder for folder in folders if re.fullmatch(r"[^/]+/\d{15}", folder))

    def _next_claim(self, snapshot: Snapshot) -> str | None:
        """What the next claim is called; None while one holds, or where the snapshot is no more."""
        if not self._is_there(snapshot):
            return None
        claims = [name for name in self.place.files(snapshot.folder) if name.startswith(f"{snapshot.folder}/{CLAIM}-")]
        if claims:
            until = self.place.read(claims[-1]).partition(b" ")[0]
            if not until.isdigit() or int(until) > time.time():  # one that is just being written has no time yet
                return None
        return f"{snapshot.folder}/{CLAIM}-{len(claims):06d}"

    def _is_there(self, snapshot: Snapshot) -> bool:
        return f"{snapshot.folder}/{MANIFEST}" in self.place.files(snapshot.folder)

    def _read(self, snapshot: Snapshot) -> State:
        """The state, verified; its tensors lie in one piece of memory, into which it is read."""
        data, found = torch.empty(snapshot.bytes, dtype=torch.uint8), hashlib.sha256()
        memory = tensors.bytes_of(data)
        for at in range(0, snapshot.bytes, READ):
            part = self.place.read(f"{snapshot.folder}/{STATE}", at, at + READ)
            if len(part) != min(READ, snapshot.bytes - at):
                break
            memory[at : at + len(part)] = part
            found.update(part)
        if found.hexdigest() != snapshot.sha256:
            raise Unusable("the saved walk is damaged; start another one")
        return State(tensors.views(data), snapshot.walk)

    def _manifest(self, folder: str) -> dict[str, Any]:
        data = self.place.read(f"{folder}/{MANIFEST}")
        try:
            said = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise Unusable("the saved walk's manifest is damaged; start another one") from error
        return said if isinstance(said, dict) else {}

    def _signature(self, said: dict[str, Any]) -> str:
        """Of a text that no token is: it has a space."""
        return self.sign(f"snapshot {digest(said)}")
