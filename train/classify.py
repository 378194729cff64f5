"""Classify pictures: the three most likely of the ten classes, one line per picture.

    python train/classify.py cat.jpg holiday/                   pictures, and all those of a folder
    python train/classify.py cat.jpg --weights weights/student.pt --csv answers.csv

A picture may have any size, and any format that Pillow reads except PostScript; of an animation the first frame is
used. The network sees its centre square, resized to 32x32, so the object should fill the middle. The released network
is used unless --weights names another; with several networks, their mean logits are used. The probabilities of one
network are calibrated if a temperature is stored with its weights (`evaluate --calibrate --store-temperature`).
This takes a second or two, and a tenth of a second more for each large photograph.

A file that is not a picture gets a line on standard error; the others are still classified, and the exit code is 2. For
a folder, one line says what was left out: subfolders and other files.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pandas as pd
import torch

from train import UserError
from train.data.pictures import read_pictures
from train.data.sources import expand
from train.engine.checkpoint import write_text
from train.engine.command import add_device, check_target, command, parser, warn
from train.engine.device import device_of
from train.engine.network import load_all, probabilities
from train.engine.progress import progress

LIKELIEST = 3


def main() -> None:
    arguments = parser(__doc__)
    add = arguments.add_argument
    add("pictures", nargs="+", type=expand, metavar="PICTURE", help="a picture, or a folder of pictures")
    add("--weights", action="append", type=expand, default=[], metavar="FILE",
        help="a weights file; repeat the flag for an ensemble (default: the released network)")
    add("--csv", type=expand, metavar="FILE", help="also write the answers, with all ten probabilities, there")
    add_device(arguments)
    args = arguments.parse_args()
    check_target("--csv", args.csv, ".csv", "file,class,")
    networks = load_all(args.weights, device_of(args.device))
    if len({network.synthetic for network in networks}) > 1:
        raise UserError("--weights: some were trained on photographs and some on generated shapes")
    names = networks[0].classes
    if networks[0].synthetic:
        warn("these weights know generated shapes and no photographs: their classes are shapes")
    files, images, complaints = read_pictures(args.pictures, warn, lambda files: progress(files, "reading", "picture"))
    if files:
        warn(f"each picture gets one of these ten classes, even if it shows none of them: {', '.join(names)}")
    chances = probabilities(networks, images) if files else torch.zeros(0, len(names))
    rows = []
    for file, row in zip(files, chances, strict=True):
        shown = os.fsencode(file).decode(errors="replace")  # without surrogates, which UTF-8 cannot write
        print(f"{shown}: " + ", ".join(f"{names[k]} {100 * row[k]:.1f} %" for k in row.topk(LIKELIEST).indices))
        rows.append([shown, names[row.argmax()], *row.tolist()])
    if args.csv and rows:  # a mistyped name leaves earlier answers as they are
        write_text(args.csv, pd.DataFrame(rows, columns=["file", "class", *names]).to_csv(index=False))
    for error in complaints:
        warn(error)
    if complaints:
        sys.exit(2)


if __name__ == "__main__":
    with command():
        main()
