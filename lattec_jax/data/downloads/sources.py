"""Where the files of the paper's data sets are.

Archives: addresses and MD5 sums as torchvision 0.28 has them, sizes as TensorFlow Datasets 4.9 has
them. Split files: CoOp's, as plain files in the repository of "Multimodality Helps Unimodality"
(Lin et al., 2023; MIT license), checked by Git's own names of their contents.
"""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

_OXFORD = "https://www.robots.ox.ac.uk/~vgg/data"
_SPLITS = (
    "https://raw.githubusercontent.com/linzhiqiu/cross_modal_adaptation/"
    "ac9077ee4e422f768c9b9109551468605e33ec9a/splits"
)


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """A public file and how its content is checked."""

    url: str
    md5: str = ""  # hexadecimal; "": not published
    git_blob: str = ""  # SHA-1 that Git gives a file of this content; "": not known
    size: int = 0  # bytes; 0: not known

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.url.rpartition("/")[2]


@dataclasses.dataclass(frozen=True)
class Archive:
    """An archive and what is taken from it; its other content is not unpacked."""

    file: RemoteFile
    folder: str  # becomes the image folder of the data set
    inner: str = ""  # a .tar.gz inside a .zip, which holds the folder
    files: tuple[str, ...] = ()  # beside `folder`; they go into the data set's own folder


@dataclasses.dataclass(frozen=True)
class Source:
    """The public files of one data set."""

    archive: Archive | None
    split: RemoteFile | None
    advice: str = ""  # what a person has to do instead, where there is no archive


def _split(name: str, git_blob: str) -> RemoteFile:
    return RemoteFile(f"{_SPLITS}/split_zhou_{name}.json", git_blob=git_blob)


# By `config.dataset.name`.
SOURCES = {
    "caltech101": Source(
        Archive(
            RemoteFile(
                "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
                md5="3138e1922a9193bfa496528edbbc45d0",
                size=137_414_764,
            ),
            folder="101_ObjectCategories",
            inner="caltech-101/101_ObjectCategories.tar.gz",
        ),
        _split("Caltech101", "8be694a80de04a39fb159c462bea9696aa47ccf1"),
    ),
    "dtd": Source(
        Archive(
            RemoteFile(
                f"{_OXFORD}/dtd/download/dtd-r1.0.1.tar.gz",
                md5="fff73e5086ae6bdbea199a49dfb8a4c1",
                size=625_239_812,
            ),
            folder="dtd/images",
        ),
        _split("DescribableTextures", "8dd197a94b598fa44ee3c9e35c486dd017ab00a7"),
    ),
    "eurosat": Source(
        Archive(
            RemoteFile(
                "https://huggingface.co/datasets/torchgeo/eurosat/resolve/"
                "c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
                md5="c8fa014336c82ac7804f0398fcb19387",
                size=94_280_567,
            ),
            folder="2750",
        ),
        _split("EuroSAT", "6bdc847a5d5c49dcc78e8cb8707b87198cbfa5a4"),
    ),
    "fgvc_aircraft": Source(
        Archive(
            RemoteFile(f"{_OXFORD}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz"),
            folder="fgvc-aircraft-2013b/data/images",
            files=(
                "variants.txt",
                "images_variant_train.txt",
                "images_variant_val.txt",
                "images_variant_test.txt",
            ),
        ),
        None,
    ),
    "flowers102": Source(
        Archive(
            RemoteFile(
                f"{_OXFORD}/flowers/102/102flowers.tgz",
                md5="52808999861908f626f3c1f4e79d11fa",
                size=344_862_509,
            ),
            folder="jpg",
        ),
        _split("OxfordFlowers", "8d10037b0690b6c65e307a354b039efb0f42404c"),
    ),
    "food101": Source(
        Archive(
            RemoteFile(
                "https://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
                md5="85eeb15f3717b99a5da872d97d918f87",
                size=4_996_278_331,
            ),
            folder="food-101/images",
        ),
        _split("Food101", "39557040ee6501bd32aa8b5dfd75f7941a32f0a7"),
    ),
    "oxford_pets": Source(
        Archive(
            RemoteFile(
                f"{_OXFORD}/pets/data/images.tar.gz", md5="5c4f3ee8e5d25df40f4fd59a7f44e54c"
            ),
            folder="images",
        ),
        _split("OxfordPets", "fa821d9f9e7d32fdf3640bf74fa7491ed04f37da"),
    ),
    "sun397": Source(
        Archive(
            RemoteFile(
                "https://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz",
                md5="8ca2778205c41d23104230ba66911c7a",
                size=39_077_296_924,
            ),
            folder="SUN397",
        ),
        _split("SUN397", "8d5725db8f70bcf02245665304f863e68f96a24c"),
    ),
    "stanford_cars": Source(
        None,
        _split("StanfordCars", "dcdb8264712e9940e74cfb0f06ddb8f9cc239b81"),
        "the authors' address for the images of Stanford Cars no longer works. Get the folders "
        "cars_train and cars_test from a copy that you may use, and put them into {root}",
    ),
    "ucf101": Source(
        None,
        _split("UCF101", "ea87e3de7b4f6f00fdd77618e34a23508b4c5590"),
        "UCF101's images are the middle frames of its videos, which CoOp's authors share as "
        "UCF-101-midframes.zip from a page for people (see {source}). Unpack it into {root}",
    ),
}


def source_of(settings: ConfigDict) -> Source | None:
    """Return the public files of the data set that `config.dataset` describes, if they are known
    and it reads them in their public layout."""
    return SOURCES.get(settings.name) if settings.kind in ("coop", "fgvc") else None
