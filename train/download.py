"""Fetch CIFAR-10, or take a file that is already here, and verify it to the last byte.

    python train/download.py --data data                    fetch the official archive when it is absent
    python train/download.py --data data --src FILE         take an archive or an npz that is already here
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from train import ROOT
from train.data import cifar10, sources
from train.engine.command import command, parser, warn


def main() -> None:
    arguments = parser(__doc__)
    add = arguments.add_argument
    add("--data", type=sources.expand, default=ROOT / "data", metavar="PATH", help="folder of the images")
    add("--src", type=sources.expand, metavar="FILE", help="a local cifar-10-python.tar.gz or cifar10.npz")
    args = arguments.parse_args()
    generated = str(args.data) == "synthetic"
    if generated or sources.present(args.data):
        if args.src:
            warn(f"--src {args.src} is not read: {args.data} {'is generated' if generated else 'holds the images'}")
    else:
        if args.src and args.src.suffix == ".npz" and args.src.is_file():  # verified before it is taken
            for part in cifar10.SIZES:
                cifar10.official(*sources.read_part(args.src, part), part)
        sources.fetch(args.data, args.src)
    for part in cifar10.SIZES:
        dataset = cifar10.load(args.data, part)
        kind = "generated on demand" if generated else "the official ones to the last byte"
        print(f"{len(dataset):,} {part} images from {dataset.source}, {kind}")


if __name__ == "__main__":
    with command():
        main()
