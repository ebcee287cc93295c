"""Dials of the export, the server, its router and its callers. Loads no torch."""

import ipaddress
import re
from dataclasses import dataclass, field

from relic.generate.config import Rollout, Sampler
from relic.geometry.config import Actions

FORMATS = ("PNG", "JPEG", "WEBP")  # of an uploaded start image
PICTURES = ("jpeg", "webp")  # formats of the pictures of a walk
IMAGE_BYTES = 8 << 20  # of an uploaded start image, where nothing else is said
FRAMES_PER_S = 500.0  # of a stream, of any kind; as many at once
LEAST_IMAGE_MEMORY = 1 << 28  # bytes: what the process that decodes needs for itself, and a small image


def body_around(image_bytes: int) -> int:
    """The largest body of a request: an image in base64 and what is around it."""
    return image_bytes * 4 // 3 + 65536


@dataclass(frozen=True, kw_only=True)
class Export:
    """A student made ready to be served."""

    name: str  # of the world, as its page shows it


@dataclass(frozen=True, kw_only=True)
class Serve:
    """A server of one export. Durations are in seconds."""

    run: str = ""  # run.json of a finished pipeline, whose export is served; or:
    export: str = ""  # an export itself: its URI, or a folder
    device: str = "auto"  # auto (the GPU where there is one), cpu, cuda or cuda:N
    gpus: int = 1  # processes that share the model, each on a GPU of its own; they must divide the model's heads
    threads: int = 0  # of torch on the CPU; 0 leaves torch's own choice
    memory_dtype: str = "fp8"  # of the attention memory: fp8, bf16 or fp32
    chunk: int = 0  # latents (of 4 frames) made together; fewer answer sooner; 0: as the export was measured
    context: str = ""  # what the memory keeps: clean (one pass more) or noisy; empty: as the export was measured
    compile: bool = True  # on a GPU: norms, RoPE and modulation as one kernel each
    graphs: bool = True  # on one GPU: passes as CUDA graphs
    text_encoder: str = ""  # umT5's folder, for a model that takes its embeddings

    host: str = "127.0.0.1"
    port: int = 8000  # 0 takes a free one
    api_keys: str = ""  # a file of lines "name key" or "name sha256:HEX"; needed where the host is not loopback
    open_to_all: bool = False  # no API keys on a host that is not loopback, on purpose
    token_secret: str = ""  # a file of at least 32 bytes that sign tokens, shared by replicas; empty: random
    origins: tuple[str, ...] = ()  # of pages that may call beside the server's own: https://NAME
    log_format: str = "text"  # or json, a line a record

    slots: int = 2  # sessions at a time
    sessions_each: int = 2  # of one principal: an API key's name, or an address where there are no keys
    hello_s: float = 10.0  # for the first message of a connection
    token_s: float = 60.0  # a token's life; `ready` and every `pong` bring a fresh one
    lease_s: float = 20.0  # how long a session without a connection keeps its slot
    rest_s: float = 3.0  # without a key the world stands still after this, and keeps its memory; 0: never
    idle_s: float = 180.0  # without a key the session ends after this
    session_s: float = 1200.0  # the longest session
    drain_s: float = 1200.0  # after SIGTERM, for the sessions that walk
    save_s: float = 60.0  # after that, for all the walks that are left to be saved; also for one that a router moves
    snapshots: str = ""  # a folder or s3:// that replicas share, to move walks between them; needs token_secret
    rewind_points: int = 4  # moments of a walk that one can go back to, each with a memory of its own; 0: none
    rewind_every_s: float = 2.0  # of the world's time, between two of them

    sockets: int = 0  # streams that may be open, half of them before their hello; 0: 4 x slots + 16
    creates_per_minute: float = 30.0  # requests for a walk by one principal; as many at once
    messages_per_s: float = 120.0  # of one stream; as many at once
    message_bytes: int = 8192  # of one message of a client
    image_bytes: int = IMAGE_BYTES  # of an uploaded image
    image_pixels: int = 32_000_000  # of an uploaded image
    image_seconds: float = 10.0  # for decoding one
    image_memory: int = 1 << 30  # bytes of address space of the process that decodes it
    prompt_characters: int = 400
    max_speed: float = 2.5  # of gamma, which multiplies the multi-hot key vector
    max_magnitude: float = 20.0  # of one number of an action
    jpeg_quality: int = 92

    def __post_init__(self) -> None:
        if bool(self.run) == bool(self.export):
            given = "both are" if self.run else "neither is"
            raise ValueError(f"give --run (run.json of a finished pipeline) or --export (URI or folder); {given} given")
        if self.threads < 0:
            raise ValueError(f"threads is {self.threads}; it must be at least 0, where 0 leaves torch's own choice")
        if self.gpus < 1:
            raise ValueError(f"gpus is {self.gpus}; it must be at least 1")
        if self.memory_dtype not in ("fp8", "bf16", "fp32"):
            raise ValueError(f"memory_dtype is {self.memory_dtype!r}; allowed are fp8, bf16 and fp32")
        if self.chunk < 0 or self.context not in ("", "clean", "noisy"):
            raise ValueError(
                f"chunk is {self.chunk} and context {self.context!r}; allowed are 1 latent or more, or 0, and clean or "
                "noisy, or nothing: 0 and nothing leave what the export was measured with"
            )
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port is {self.port}; allowed are 1 to 65535, and 0 for a free one")
        if self.slots < 1 or self.sessions_each < 1:
            raise ValueError(f"slots is {self.slots} and sessions_each {self.sessions_each}; both must be at least 1")
        above, least = "above 0", "at least 0"
        for name, allowed in {
            "hello_s": above, "token_s": above, "lease_s": above, "idle_s": above, "session_s": above, "rest_s": least,
            "drain_s": least, "message_bytes": above, "image_bytes": above, "image_pixels": above,
            "prompt_characters": least, "max_speed": above, "max_magnitude": above,
        }.items():  # fmt: skip
            if (value := getattr(self, name)) < 0 or (allowed is above and not value):
                raise ValueError(f"{name} is {value}; it must be {allowed}")
        if self.snapshots and not self.token_secret:
            raise ValueError(f"snapshots is {self.snapshots!r} without token_secret; give the file that replicas share")
        if self.rewind_points < 0 or self.rewind_every_s <= 0:
            raise ValueError(
                f"rewind_points is {self.rewind_points} and rewind_every_s {self.rewind_every_s}; allowed are at least "
                "0 and above 0"
            )
        if self.sockets < 0 or self.creates_per_minute <= 0 or self.messages_per_s < 1:
            raise ValueError(
                f"sockets is {self.sockets}, creates_per_minute {self.creates_per_minute} and messages_per_s "
                f"{self.messages_per_s}; allowed are at least 0, above 0 and at least 1"
            )
        if self.messages_per_s > FRAMES_PER_S:
            raise ValueError(
                f"messages_per_s is {self.messages_per_s}; it must be at most {FRAMES_PER_S:g}, the frames a second "
                "that end a stream at once"
            )
        if self.image_seconds <= 0 or self.image_memory < LEAST_IMAGE_MEMORY:
            raise ValueError(
                f"image_seconds is {self.image_seconds} and image_memory {self.image_memory}; allowed are above 0 and "
                f"at least {LEAST_IMAGE_MEMORY}"
            )
        for origin in self.origins:
            if not re.fullmatch(r"https?://[^/\s]+", origin):
                raise ValueError(f"origins has {origin!r}; allowed are http:// or https://, a name, perhaps a port")
        if self.log_format not in ("text", "json"):
            raise ValueError(f"log_format is {self.log_format!r}; allowed are text and json")
        if not 1 <= self.jpeg_quality <= 100:
            raise ValueError(f"jpeg_quality is {self.jpeg_quality}; allowed are 1 to 100")
        if not (self.loopback or self.api_keys or self.open_to_all):
            raise ValueError(
                f"host {self.host} can be reached from other machines; give --api-keys FILE (lines of a name and a "
                "key), or --open-to-all if everybody may walk"
            )

    @property
    def loopback(self) -> bool:
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def most_sockets(self) -> int:
        return self.sockets or 4 * self.slots + 16

    @property
    def body_bytes(self) -> int:
        return body_around(self.image_bytes)


@dataclass(frozen=True, kw_only=True)
class Router:
    """A router of sessions to several servers (`relic serve`), its replicas. Durations are in seconds."""

    replicas: str  # NAME:PORT, several between commas; a name stands for all addresses that it has at the moment
    token_secret: str  # the file whose content signs tokens, the same as the replicas'

    host: str = "127.0.0.1"
    port: int = 8080  # 0 takes a free one
    log_format: str = "text"  # or json, a line a record
    deletion_cost: bool = False  # in a cluster: tells it, by an annotation, which pod has the fewest walks

    ask_s: float = 1.0  # between two questions to a replica how it is
    dead_s: float = 5.0  # a replica that is silent for longer has died; one that refuses a connection has at once
    answer_s: float = 60.0  # for a replica's answer to a caller's request
    hello_s: float = 10.0  # for the first message of a connection

    sockets: int = 2048  # connections of callers that may be open
    body_bytes: int = body_around(IMAGE_BYTES)  # of a request
    message_bytes: int = 8192  # of one message of a caller
    queue: int = 4  # pictures of a stream that wait in the router for a slow reader

    def __post_init__(self) -> None:
        assert self.addresses
        if not self.token_secret:
            raise ValueError("token_secret is empty; it must be the file with the secret that the replicas have too")
        if self.log_format not in ("text", "json"):
            raise ValueError(f"log_format is {self.log_format!r}; allowed are text and json")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port is {self.port}; allowed are 1 to 65535, and 0 for a free one")
        if min(self.ask_s, self.dead_s, self.answer_s, self.hello_s) <= 0:
            raise ValueError("ask_s, dead_s, answer_s and hello_s must all be above 0 seconds")
        if min(self.sockets, self.body_bytes, self.message_bytes, self.queue) < 1:
            raise ValueError("sockets, body_bytes, message_bytes and queue must all be at least 1")

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """The names and ports of `replicas`."""
        found = [re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^\s:]+):(\d{1,5})", one) for one in self.replicas.split(",")]
        if not all(found):
            raise ValueError(f"replicas is {self.replicas!r}; it must be NAME:PORT, or several between commas")
        return tuple((one[1].strip("[]"), int(one[2])) for one in found if one)


@dataclass(frozen=True, kw_only=True)
class Play:
    """A walk through a server's world without a page."""

    address: str  # of a server or router: http://HOST:PORT
    script: str = ""  # what is held and how long, as `relic generate --actions` has it; empty: keys of the terminal
    out: str = ""  # an .mp4, or a folder that takes a file a frame; empty: nothing is kept

    example: str = ""  # the start image: an example's id; empty: the first one
    image: str = ""  # or a picture, PNG, JPEG or WEBP
    prompt: str = ""  # what the world looks like; an example brings its own
    seed: int = 0
    speed: float = 1.0  # multiplies the usual size of every action
    format: str = "jpeg"  # of the frames: jpeg or webp
    key_file: str = ""  # holds an API key; without it, RELIC_API_KEY does
    wait_s: float = 0.0  # how long a server that is full or warming up is asked again

    def __post_init__(self) -> None:
        if not self.address.startswith(("http://", "https://")):
            raise ValueError(f"address is {self.address!r}; it must be a server's, such as http://127.0.0.1:8000")
        if self.example and self.image:
            raise ValueError(f"both example {self.example!r} and image {self.image!r} are given; allowed is one")
        if re.search(r"\.\w+$", self.out) and not self.out.endswith(".mp4"):
            raise ValueError(f"out is {self.out!r}; it must end in .mp4, or be a folder without an ending")
        if self.format not in PICTURES:
            raise ValueError(f"format is {self.format!r}; allowed are {' and '.join(PICTURES)}")
        if self.speed <= 0:
            raise ValueError(f"speed is {self.speed}; it must be above 0")


@dataclass(frozen=True, kw_only=True)
class Film:
    """A video of a walk that begins in one picture and follows a script of actions."""

    image: str  # the picture, PNG, JPEG or WEBP; its middle is cut to the video's shape
    actions: str  # what is held and how long (s or frames, f): "w 2s, left 1s, w+left 8f, still 1s"
    out: str = "walk.mp4"

    run: str = ""  # run.json of a finished pipeline; or:
    export: str = ""  # an export: its URI, or a folder; or both of:
    weights: str = ""  # a transformer's folder
    codec: str = ""  # its codec's folder
    text_encoder: str = ""  # umT5's folder, for a model that takes its embeddings
    kind: str = "student"  # student (chunk by chunk, as it is served) or teacher (many steps, all latents at once)

    caption: str = ""
    seed: int = 0
    speed: float = 1.0  # multiplies the usual size of every action
    height: int = 0  # pixels; a run or an export says its own
    width: int = 0
    fps: float = 16.0
    device: str = "auto"  # auto (the GPU where there is one), cpu, cuda or cuda:N
    threads: int = 0  # of torch on the CPU; 0 leaves torch's own choice
    sampler: Sampler = field(default_factory=Sampler)  # of the teacher
    rollout: Rollout = field(default_factory=Rollout)  # of the student
    unit: Actions = field(default_factory=Actions)

    def __post_init__(self) -> None:
        given = [self.run, self.export, self.weights or self.codec]
        if sum(map(bool, given)) != 1 or bool(self.weights) != bool(self.codec):
            raise ValueError(
                "the model is not clear; give --run (run.json), or --export (URI or folder), or both --weights and "
                "--codec (folders)"
            )
        if self.kind not in ("student", "teacher"):
            raise ValueError(f"kind is {self.kind!r}; allowed are student and teacher")
        if self.kind == "teacher" and self.export:
            raise ValueError("an export holds no teacher; give --run, or --weights and --codec")
        if not self.out.endswith(".mp4"):
            raise ValueError(f"out is {self.out!r}; it must end in .mp4")
        if self.weights and min(self.height, self.width) < 1:
            raise ValueError(f"the video is {self.width}x{self.height} pixels; give --width and --height")
        if self.speed <= 0 or self.fps <= 0:
            raise ValueError(f"speed is {self.speed} and fps {self.fps}; both must be above 0")
        if self.threads < 0:
            raise ValueError(f"threads is {self.threads}; it must be at least 0, where 0 leaves torch's own choice")
