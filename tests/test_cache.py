import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from relic.data.cache import COUNT, Cache

WRITER = """
import sys
from pathlib import Path
from relic.data.cache import Cache
cache = Cache(Path(sys.argv[1]), 10_000)
for number in range(60):
    cache.write(f"{sys.argv[2]}-{number}", bytes(number * 7))
"""


def copies(folder) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir() if not path.name.startswith(".")}


def test_a_copy_is_read_back_until_it_is_thrown_away(tmp_path):
    cache = Cache(tmp_path / "not yet", 100)
    assert cache.read("a") is None
    cache.write("a", b"data")
    assert cache.read("a") == b"data"
    cache.remove("a")
    cache.remove("a")
    assert cache.read("a") is None


def test_the_oldest_used_leave_first(tmp_path):
    cache = Cache(tmp_path, 100)
    for age, name in enumerate("dcba"):
        cache.write(name, bytes(25))
        os.utime(tmp_path / name, (1000 + age, 1000 + age))
    cache.read("d")
    cache.write("e", bytes(30))
    assert copies(tmp_path) == {"a": 25, "d": 25, "e": 30}


def test_a_copy_larger_than_the_bound_is_not_kept_and_moves_none(tmp_path):
    cache = Cache(tmp_path, 100)
    cache.write("a", bytes(100))
    cache.write("b", bytes(101))
    assert copies(tmp_path) == {"a": 100}


def test_processes_that_share_a_folder_keep_its_bound(tmp_path):
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, tmp_path, str(number)]) for number in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert 5_000 < sum(copies(tmp_path).values()) <= 10_000


def test_threads_lock_each_other_out(tmp_path):
    cache = Cache(tmp_path, 1000)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: cache.write(str(number), bytes(10)), range(90)))
    assert int((tmp_path / COUNT).read_bytes()) == sum(copies(tmp_path).values()) == 900


def test_what_a_killed_writer_left_is_removed_and_its_count_put_right(tmp_path):
    cache = Cache(tmp_path, 100)
    (tmp_path / ".half.123.tmp").write_bytes(bytes(500))
    (tmp_path / COUNT).write_bytes(b"90")
    cache.write("a", bytes(20))
    assert copies(tmp_path) == {"a": 20}
    assert not (tmp_path / ".half.123.tmp").exists()
    assert int((tmp_path / COUNT).read_bytes()) == 20
