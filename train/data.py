"""Fetch CIFAR-10, or take a file that is already here, and verify it to the last byte.

    python train/data.py --data data                      fetch the official archive when it is absent
    python train/data.py --data data --src FILE           take an archive or an npz that is already here
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from train.engine import data, sources
from train.engine.command import ROOT, command, parser


@command
def main():
    arguments = parser(__doc__)
    arguments.add_argument("--data", type=Path, default=ROOT / "data", metavar="PATH", help="folder of the images")
    arguments.add_argument("--src", type=Path, metavar="FILE", help="a local cifar-10-python.tar.gz or cifar10.npz")
    args = arguments.parse_args()
    generated = str(args.data) == "synthetic"
    if not generated and not sources.present(args.data):
        if args.src and args.src.suffix == ".npz" and args.src.is_file():  # verified before it is taken
            for part in data.SIZES:
                data.official(*sources.read_part(args.src, part), part)
        sources.fetch(args.data, args.src)
    for part in data.SIZES:
        dataset = data.load(args.data, part)
        kind = "generated whenever they are needed" if generated else "the official ones to the last byte"
        print(f"{len(dataset):,} {part} images from {dataset.source}, {kind}")


if __name__ == "__main__":
    main()
