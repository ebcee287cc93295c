"""Reads a Doom map's geometry from a WAD, and writes a calm copy of it in which nothing moves, blinks or triggers.

Formats: the Unofficial Doom Specs 1.666. A WAD is a list of lumps; a map is a marker lump and the ten lumps after it.
"""

import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

NUM_MAP_LUMPS = 10
LINE = np.dtype([("v", "<u2", 2), ("flags", "<u2"), ("special", "<u2"), ("tag", "<u2"), ("side", "<u2", 2)])
SECTOR = np.dtype(
    [("floor", "<i2"), ("ceiling", "<i2"), ("pics", "S8", 2), ("light", "<i2"), ("special", "<u2"), ("tag", "<u2")]
)
SIDE = np.dtype([("offset", "<i2", 2), ("pics", "S8", 3), ("sector", "<u2")])
THING = np.dtype([("x", "<i2"), ("y", "<i2"), ("angle", "<i2"), ("type", "<u2"), ("flags", "<u2")])
NO_SIDE = 0xFFFF
BLOCKS_PLAYER = 1  # flag of a line
MANUAL_DOORS = (1, 26, 27, 28, 31, 32, 33, 34, 117, 118)  # specials of lines whose back is a door
TAGGED_DOORS = (2, 4, 16, 29, 46, 61, 63, 86, 90, 99, 103, 105, 106, 108, 109, 111, 112, 114, 115, *range(133, 138))
PLAYER_STARTS = (1, 2, 3, 4, 11)  # types of things; 11 is a deathmatch start, of which a map has many
BODY_HEIGHT, STEP_HEIGHT = 56, 24  # map units

# Each animated texture is defined anew: as its first frame, twice, for half an hour each.
FLATS = "NUKAGE1 FWATER1 SWATER1 LAVA1 BLOOD1 RROCK05 SLIME01 SLIME05 SLIME09"
TEXTURES = (
    "BLODGR1 SLADRIP1 BLODRIP1 FIREWALA GSTFONT1 FIRELAV3 FIREMAG1 FIREBLU1 ROCKRED1 BFALL1 SFALL1 WFALL1 DBRAIN1"
)
STILL = "\n".join(
    f"{kind} {name} pic 1 tics 65535 pic 1 tics 65535"
    for kind, names in (("flat", FLATS), ("texture", TEXTURES))
    for name in names.split()
)
# A body that picks nothing up, so that a thing seen stays where it was seen.
VISITOR = "actor Visitor : DoomPlayer { -PICKUP }"
GAME = 'GameInfo { PlayerClasses = "Visitor" }'


@dataclass(frozen=True)
class Map:
    """Geometry in map units. S sectors, L lines, of which the N walls cannot be walked over."""

    lines: np.ndarray  # float [L, 4] x1 y1 x2 y2
    sides: np.ndarray  # int [L, 2] sector on either side, -1 for none
    heights: np.ndarray  # float [S, 2] floor, ceiling
    walls: np.ndarray  # float [N, 4]
    sky: np.ndarray  # bool [S] open to the sky
    reachable: np.ndarray  # bool [S] joined to a player's start by openings one fits through

    def sector_at(self, point: np.ndarray) -> int:
        """The sector around a point [2], -1 if none: a ray to the east crosses its border an odd number of times."""
        x1, y1, x2, y2 = self.lines.T
        crossed = (y1 > point[1]) != (y2 > point[1])
        crossed &= x1 + (point[1] - y1) * (x2 - x1) / np.where(y1 == y2, 1, y2 - y1) > point[0]
        sides = self.sides[crossed]
        odd = np.bincount(sides[sides >= 0], minlength=len(self.heights)) % 2
        # A line with the same sector on both sides counts twice, which is even: it borders nothing.
        return int(odd.argmax()) if odd.any() else -1

    def is_reachable(self, point: np.ndarray) -> bool:
        sector = self.sector_at(point)
        return sector >= 0 and bool(self.reachable[sector])

    def is_outdoor(self, points: np.ndarray) -> bool:
        """Whether most of the points [T, 2] lie under the sky."""
        return bool(np.mean([self.sky[self.sector_at(point)] for point in points]) > 0.5)

    def clearance(self, point: np.ndarray) -> float:
        """Distance from a point [2] to the nearest wall."""
        start, along = self.walls[:, :2], self.walls[:, 2:] - self.walls[:, :2]
        share = ((point - start) * along).sum(1) / np.maximum((along * along).sum(1), 1e-9)
        nearest = start + np.clip(share, 0, 1)[:, None] * along
        return float(np.hypot(*(nearest - point).T).min())


def read_map(wad: Path, name: str) -> Map:
    """The geometry of a map with its doors open. An unknown map is a ValueError."""
    lumps = dict(_map_lumps(wad, name))
    vertices = np.frombuffer(lumps["VERTEXES"], "<i2").reshape(-1, 2).astype(float)
    lines, sectors, side_sectors = _parts(lumps)
    behind = side_sectors[np.minimum(lines["side"], len(side_sectors) - 1)].astype(int)
    sides = np.where(lines["side"] == NO_SIDE, -1, behind)
    heights = np.stack([sectors["floor"], sectors["ceiling"]], 1).astype(float)
    front, back = heights[sides[:, 0]], heights[sides[:, 1]]
    opening = np.minimum(front[:, 1], back[:, 1]) - np.maximum(front[:, 0], back[:, 0])
    open_ = (sides >= 0).all(1) & (opening >= BODY_HEIGHT) & ((lines["flags"] & BLOCKS_PLAYER) == 0)
    walkable = open_ & (abs(front[:, 0] - back[:, 0]) <= STEP_HEIGHT)
    xyxy = vertices[lines["v"]].reshape(-1, 4)
    found = Map(xyxy, sides, heights, xyxy[~walkable], sectors["pics"][:, 1] == b"F_SKY1", np.zeros(len(heights), bool))
    things = np.frombuffer(lumps["THINGS"], THING)
    for thing in things[np.isin(things["type"], PLAYER_STARTS)]:
        found.reachable[found.sector_at(np.array([thing["x"], thing["y"]]))] = True
    _spread(found.reachable, sides[open_])
    return found


def write_calm(wad: Path, names: list[str], out: Path) -> None:
    """A WAD with calm copies of the maps: no specials, doors open, still textures, and a player who takes nothing."""
    lumps = [("DECORATE", VISITOR.encode()), ("ZMAPINFO", GAME.encode()), ("ANIMDEFS", STILL.encode())]
    for name in names:
        original = _map_lumps(wad, name)
        lines, sectors, _ = _parts(dict(original))
        lines["special"], sectors["special"] = 0, 0
        sectors["light"] = np.clip(sectors["light"] * 0.6 + 102, 0, 255)  # a dark room stays darker, but is seen
        changed = {"LINEDEFS": lines.tobytes(), "SECTORS": sectors.tobytes()}
        lumps += [(name, b"")] + [(lump, changed.get(lump, data)) for lump, data in original]
    content = b"".join(data for _, data in lumps)
    offsets = np.cumsum([12] + [len(data) for _, data in lumps])
    table = [
        struct.pack("<ii8s", at, len(data), name.encode()) for at, (name, data) in zip(offsets[:-1], lumps, strict=True)
    ]
    out.write_bytes(struct.pack("<4sii", b"PWAD", len(lumps), 12 + len(content)) + content + b"".join(table))


def _map_lumps(wad: Path, name: str) -> list[tuple[str, bytes]]:
    """Name and content of a map's lumps, in the file's order."""
    with wad.open("rb") as file:
        _, number, at = struct.unpack("<4sii", file.read(12))
        file.seek(at)
        table = [
            (at, size, label.rstrip(b"\0").decode("latin1"))
            for at, size, label in struct.iter_unpack("<ii8s", file.read(16 * number))
        ]
        names = [label for _, _, label in table]
        if name not in names:
            maps = [marker for marker, lump in pairwise(names) if lump == "THINGS"]
            raise ValueError(f"{wad.name} has no map {name!r}; it has {', '.join(maps)}")
        found = []
        for place, size, lump in table[names.index(name) + 1 :][:NUM_MAP_LUMPS]:
            file.seek(place)
            found.append((lump, file.read(size)))
    return found


def _parts(lumps: dict[str, bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lines, sectors with the doors open (both writable), and each side's sector."""
    lines = np.frombuffer(lumps["LINEDEFS"], LINE).copy()
    sectors = np.frombuffer(lumps["SECTORS"], SECTOR).copy()
    side_sectors = np.frombuffer(lumps["SIDEDEFS"], SIDE)["sector"]
    two_sided = lines[lines["side"][:, 1] != NO_SIDE]
    pairs = side_sectors[two_sided["side"]]  # [., 2] front, back
    doors = set(pairs[np.isin(two_sided["special"], MANUAL_DOORS), 1])
    tags = lines["tag"][np.isin(lines["special"], TAGGED_DOORS) & (lines["tag"] > 0)]
    for door in doors | set(np.flatnonzero(np.isin(sectors["tag"], tags))):
        around = np.concatenate([pairs[pairs[:, 0] == door, 1], pairs[pairs[:, 1] == door, 0]])
        around = around[around != door]
        if len(around):  # four units below the lowest ceiling around it is where the game stops an opening door
            sectors["ceiling"][door] = max(sectors["ceiling"][around].min() - 4, sectors["ceiling"][door])
    return lines, sectors, side_sectors


def _spread(reachable: np.ndarray, pairs: np.ndarray) -> None:
    """Marks, in place, every sector that pairs [., 2] of neighbours join to a marked one."""
    while not (marked := reachable[pairs]).all(1)[marked.any(1)].all():
        reachable[pairs[marked.any(1)]] = True
