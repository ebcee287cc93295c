"""Video files by PyAV. A frame is found by its presentation time stamp, never by counting packets: they come in another
order where there are B-frames, and a seek lands on the keyframe before."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np

from relic import artifacts

OPTIONS = {
    # Macroblock trees favour frames that others refer to, and with AVX-512 differ from run to run (seen: 1 file in 20).
    "libx264": {"x264-params": "no-mbtree=1"},
    "libx265": {"x265-params": "log-level=none:pools=none"},
}


def write(
    path: Path, frames: np.ndarray, *, fps: float, crf: int = 10, codec: str = "libx264", pts: list[int] | None = None
) -> None:
    """Write frames uint8 [T, H, W, 3] as an mp4; frame t is shown at t / fps seconds, or at pts[t] / fps."""
    with artifacts.naming(path), recording(path, fps=fps, crf=crf, codec=codec) as add:
        for index, frame in enumerate(frames):
            add(frame, pts[index] if pts else index)


@contextlib.contextmanager
def recording(path: Path, *, fps: float, crf: int = 10, codec: str = "libx264") -> Iterator[Callable[..., None]]:
    """A function that takes the frames uint8 [H, W, 3] of an mp4 as they come, each with its time in 1 / fps seconds;
    both sides must be even, for yuv420p. The file is there, whole, at the end, or not at all."""
    rate = Fraction(fps).limit_denominator(100_000)
    with artifacts.writing(path) as file, av.open(file, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=rate, options={"crf": str(crf), "g": "16", **OPTIONS.get(codec, {})})
        assert isinstance(stream, av.VideoStream)
        stream.pix_fmt, stream.thread_count = "yuv420p", 1

        def add(frame: np.ndarray, at: int) -> None:
            height, width, _ = frame.shape
            if height % 2 or width % 2:
                raise ValueError(f"a frame is {width}x{height} pixels; a video's width and height must be even")
            if not stream.codec_context.is_open:
                stream.width, stream.height = width, height
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture.pts, picture.time_base = at, 1 / rate
            container.mux(stream.encode(picture))

        yield add
        if not stream.codec_context.is_open:
            raise ValueError("no frame came, and a video needs one")
        container.mux(stream.encode())


class Reader:
    """A video open for reading: `timestamps` [T] in seconds, and any frame by its number in order of display."""

    def __init__(self, path: Path) -> None:
        try:
            self._container = av.open(str(path))
            self._stream = self._container.streams.video[0]
        except (av.FFmpegError, IndexError) as error:
            raise ValueError(f"{path} is not a video that can be read ({error})") from error
        self._stream.thread_type = "NONE"
        self._stream.codec_context.thread_count = 1
        pts = [p.pts for p in self._container.demux(self._stream) if p.pts is not None and not p.is_discard]
        self._pts = np.unique(np.array(pts, np.int64))  # in order of display
        self._path = path
        if not len(self._pts):
            raise ValueError(f"{path} has no frames; a video needs at least one")
        self.timestamps = self._pts * float(self._stream.time_base or 0)

    def __len__(self) -> int:
        return len(self._pts)

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._container.close()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self._stream.height, self._stream.width

    def pictures(self, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        """The frames of strictly increasing numbers, uint8 [H, W, 3] one by one, which a long video needs."""
        if not len(numbers) or numbers[0] < 0 or numbers[-1] >= len(self):
            raise ValueError(f"frames {list(numbers)[:1]} to {list(numbers)[-1:]} of {self._path} were asked for; "
                             f"it has 0 to {len(self) - 1}")  # fmt: skip
        wanted = deque(self._pts[np.asarray(numbers)].tolist())
        try:
            self._container.seek(wanted[0], stream=self._stream, backward=True)
            for picture in self._container.decode(self._stream):
                if picture.pts == wanted[0]:
                    yield picture.to_ndarray(format="rgb24")
                    wanted.popleft()
                    if not wanted:
                        return
        except av.FFmpegError as error:
            raise ValueError(f"{self._path} cannot be decoded ({error})") from error
        number = int(np.searchsorted(self._pts, wanted[0]))
        raise ValueError(f"frame {number} of {self._path} cannot be decoded; the file is cut short or damaged")

    def frames(self, first: int = 0, count: int | None = None) -> np.ndarray:
        """Frames first .. first + count - 1 (all that follow without a count), uint8 [count, H, W, 3]."""
        return np.stack(list(self.pictures(range(first, len(self) if count is None else first + count))))


def read(path: Path) -> np.ndarray:
    """All frames of a video, uint8 [T, H, W, 3]."""
    with Reader(path) as reader:
        return reader.frames()
