"""Preparing a large set: images a second, two workers against one, memory over time, and what resuming costs.

20,000 grey images of the size of CheXpert-small (390 x 320; one half JPEG, one half PNG; 500 different ones, written again and
again) go through ``evenhand prepare csv``. Bars: two workers at least 1.6 times as fast as one; resident memory flat; a prepared
set is taken up again in under 2 s; after ``kill -9`` no image that was entered as decoded is decoded again. Decoding alone is
compared on the same files with Pillow, torchvision and, where it is installed, OpenCV: within 1.2 times the processor time of the
best of them, outputs within 2 grey levels.

Run it with ``python benchmarks/prepare.py``; it exits 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
from PIL import Image

HEIGHT, WIDTH = 320, 390
SETS = {"CheXpert": 224_316, "MIMIC-CXR-JPG": 377_110}
CHILD = """
import json, sys, time
from evenhand.data import building
from evenhand.data.sources.csv import prepare_csv
folder, out, workers, shared = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "shared"
counted = [0]
real = building.run_chunks
def run_chunks(function, tasks, workers):
    for result in real(function, tasks, workers):
        counted[0] += function is building.decode_chunk
        yield result
building.run_chunks = run_chunks
start = time.perf_counter()
prepare_csv(f"{folder}/table.csv", out, images=folder, labels=["y"], attributes=["sex"], workers=workers, shared=shared)
print(json.dumps({"seconds": time.perf_counter() - start, "chunks": counted[0]}))
"""


def write(text: str = "") -> None:
    """One line to standard output."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def film(rng: np.random.Generator, height: int = HEIGHT, width: int = WIDTH, channels: int = 1) -> Image.Image:
    """Smooth shapes and some grain, as a film has."""
    coarse = rng.integers(0, 256, (12, 12, channels), dtype=np.uint8).squeeze()
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    grain = rng.integers(-6, 7, (height, width, channels)).squeeze()
    return Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str) -> bytes:
    """A file's content, as providers write it."""
    stream = io.BytesIO()
    image.save(stream, kind, **({"quality": 90} if kind == "JPEG" else {}))
    return stream.getvalue()


def write_set(folder: Path, n: int, different: int = 500) -> None:
    """n images in folders of a thousand, and their table."""
    rng = np.random.default_rng(0)
    contents = [encoded(film(rng), ("JPEG", "PNG")[k % 2]) for k in range(min(different, n))]
    names = []
    for k in range(n):
        if k % 1000 == 0:
            (folder / f"{k // 1000:03d}").mkdir(parents=True)
        names.append(f"{k // 1000:03d}/{k:06d}.{('jpg', 'png')[k % len(contents) % 2]}")
        (folder / names[-1]).write_bytes(contents[k % len(contents)])
    rows = {"image": names, "patient_id": np.arange(n) // 2, "y": np.arange(n) // 2 % 2, "sex": np.where(np.arange(n) // 4 % 2, "f", "m")}
    rows["split"] = np.array(["train", "val", "test"])[np.arange(n) // 2 % 10 // 4]
    pd.DataFrame(rows).to_csv(folder / "table.csv", index=False)


def start(folder: Path, out: Path, workers: int, shared: bool = False) -> subprocess.Popen[str]:
    """``evenhand prepare csv`` in a process of its own."""
    command = [sys.executable, "-c", CHILD, str(folder), str(out), str(workers), "shared" if shared else "alone"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def finish(process: subprocess.Popen[str]) -> dict[str, float]:
    """What the process has measured."""
    told, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"prepare ended with {process.returncode}")
    return json.loads(told)


class Memory:
    """Resident memory of a process and of its workers, in MB, sampled while it runs (pages shared between them count in each)."""

    def __init__(self, pid: int) -> None:
        self.main: list[float] = []
        self.all: list[float] = []
        self._thread = threading.Thread(target=self._sample, args=(psutil.Process(pid),))
        self._thread.start()

    def _sample(self, process: psutil.Process) -> None:
        while True:
            try:
                main = process.memory_info().rss / 1e6
                workers = [child.memory_info().rss / 1e6 for child in process.children(recursive=True)]
            except psutil.Error:
                return
            if process.status() == psutil.STATUS_ZOMBIE:
                return
            self.main.append(main)
            self.all.append(main + sum(workers))
            time.sleep(0.25)

    def quarters(self) -> tuple[list[float], list[float]]:
        """Medians over the quarters of the time: of the main process, and of all."""
        self._thread.join()
        return tuple([float(np.median(part)) for part in np.array_split(values, 4)] for values in (self.main, self.all))  # type: ignore[return-value]


def interrupted(folder: Path, out: Path, n: int) -> tuple[int, int]:
    """Kill a run by -9 when half is entered; images entered until then, and images decoded by the run that goes on."""
    process = start(folder, out, 2)
    journal = out / "cache" / "journal.jsonl"
    while not journal.exists() or journal.read_bytes().count(b"\n") < n // 64:
        time.sleep(0.02)
        if process.poll() is not None:
            raise RuntimeError("the run ended before it was killed")
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    psutil.wait_procs(children, timeout=10)  # workers end by themselves when their parent is gone
    entered = sum(len(json.loads(line)["hashes"]) for line in journal.read_text().splitlines() if line.endswith("}"))
    return entered, int(finish(start(folder, out, 2))["chunks"]) * 32


def decoders() -> dict[str, Callable[[str], np.ndarray]]:
    """Ways to decode a file."""
    import torch
    from torchvision.io import ImageReadMode, decode_image, read_file

    from evenhand.data.images import read_image

    torch.set_num_threads(1)
    ways: dict[str, Callable[[str], np.ndarray]] = {
        "evenhand": read_image,
        "Pillow": lambda file: np.asarray(Image.open(file)),
        "torchvision": lambda file: decode_image(read_file(file), ImageReadMode.UNCHANGED).numpy(),
    }
    try:
        import cv2
    except ImportError:
        write("OpenCV is not installed: compared without it")
        return ways
    cv2.setNumThreads(1)
    ways["OpenCV"] = lambda file: cv2.imread(file, cv2.IMREAD_UNCHANGED)
    return ways


def compare_decoding(folder: Path, seconds: float) -> list[tuple[str, float, float]]:
    """(kind of file, processor time against the best peer, largest difference in grey levels); prints the times."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    kinds = {
        "JPEG, grey, 390 x 320": ("JPEG", HEIGHT, WIDTH, 1, 40), "PNG, grey, 390 x 320": ("PNG", HEIGHT, WIDTH, 1, 40),
        "JPEG, colour, 600 x 450": ("JPEG", 450, 600, 3, 20), "PNG, grey, 1024 x 1024": ("PNG", 1024, 1024, 1, 6),
    }
    ways, results = decoders(), []
    for label, (kind, height, width, channels, n) in kinds.items():
        files = [str(folder / f"{label}{k}.{kind.lower()}") for k in range(n)]
        for file in files:
            Path(file).write_bytes(encoded(film(rng, height, width, channels), kind))
        best = dict.fromkeys(ways, float("inf"))
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            for name, decode in ways.items():  # in turns, so that a busy machine hits all alike
                began = time.thread_time()
                for file in files:
                    decode(file)
                best[name] = min(best[name], (time.thread_time() - began) / n)
        worst = max(_difference(ways[name](file), ways["evenhand"](file), name) for name in ways for file in files[:4])
        ratio = best["evenhand"] / min(time_ for name, time_ in best.items() if name != "evenhand")
        write(f"{label:<28}" + "  ".join(f"{name} {value * 1e3:.3f} ms" for name, value in best.items()))
        results.append((label, ratio, worst))
    return results


def _difference(theirs: np.ndarray, ours: np.ndarray, name: str) -> float:
    if theirs.ndim == 3 and theirs.shape[0] in (1, 3):
        theirs = theirs.transpose(1, 2, 0)
    if theirs.ndim == 3 and name == "OpenCV":
        theirs = theirs[..., ::-1]
    return float(np.abs(theirs.squeeze().astype(int) - ours.astype(int)).max())


def main() -> int:
    """Print figures and bars; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=8.0, help="time for the comparison of decoders, for each kind of file")
    parser.add_argument("--folder", type=Path, help="where to write the images and caches; default: a temporary folder")
    options = parser.parse_args()
    n, bars = options.images, []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        root = Path(name)
        for label, ratio, worst in compare_decoding(root / "decoding", options.seconds):
            bars.append((f"decoding {label}: time / best peer", ratio, ratio <= 1.2, "at most 1.2"))
            bars.append((f"decoding {label}: grey levels apart", worst, worst <= 2, "at most 2"))
        raw = root / "raw"
        write_set(raw, n)
        size = sum(file.stat().st_size for file in raw.rglob("*")) / 1e9
        write(f"{n:,} images, {size:.2f} GB; load of the machine before the runs: {os.getloadavg()[0]:.1f} of {os.cpu_count()} processors")
        seconds = {}
        for workers in (1, 2):
            process = start(raw, root / f"w{workers}", workers)
            memory = Memory(process.pid)
            seconds[workers] = finish(process)["seconds"]
            alone, together = memory.quarters()
            text = ", ".join(f"{a:.0f} / {b:.0f}" for a, b in zip(alone, together, strict=True))
            write(f"{workers} worker(s): {seconds[workers]:.1f} s, {n / seconds[workers]:,.0f} images/s")
            write(f"  resident MB by quarter of the time, main process / all: {text}")
            growth = together[3] / together[1]
            bars.append((f"memory, {workers} worker(s), last quarter / second", growth, growth <= 1.1, "at most 1.1"))
        for title, count in SETS.items():
            write(f"  {title}, {count:,} images, at this speed with two workers: {count / n * seconds[2] / 60:.0f} minutes")
        bars.append(("two workers / one", seconds[1] / seconds[2], seconds[1] / seconds[2] >= 1.6, "at least 1.6"))
        again = finish(start(raw, root / "w2", 2))
        bars.append(("a finished set taken up again, s", again["seconds"], again["seconds"] < 2 and not again["chunks"], "under 2"))
        entered, decoded = interrupted(raw, root / "killed", n)
        twice = max(0, entered + decoded - -(-n // 32) * 32)
        write(f"killed with {entered:,} images entered; the next run decoded {decoded:,} of {n:,}")
        bars.append(("entered images decoded again after kill -9", twice, twice == 0, "0"))
        began = time.perf_counter()
        for process in [start(raw, root / "shared", 1, shared=True) for _ in range(2)]:
            finish(process)
        write(f"two processes with --shared, one worker each: {time.perf_counter() - began:.1f} s with their start")
    for label, value, met, bar in bars:
        write(f"{label:<56}{value:>10.2f}   bar {bar:<12} {'met' if met else 'MISSED'}")
    return 0 if all(met for _, _, met, _ in bars) else 1


if __name__ == "__main__":
    sys.exit(main())
