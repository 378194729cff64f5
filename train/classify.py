"""Say what pictures show: the three likeliest of the ten classes, one line a picture.

    python train/classify.py cat.jpg holiday/                   pictures, and all those of a folder
    python train/classify.py cat.jpg --weights weights/student.pt --json answers.json --csv answers.csv

A picture may have any size, and any format that Pillow reads but PostScript; of an animated one it is the first frame.
Its centre square is resized to 32x32, all that a network sees, so what matters should fill the middle. Without
--weights the released network answers; several answer by the mean of their logits. The probabilities are calibrated
where evaluate has stored a temperature with the weights (`--calibrate --store`). A second or two, and for each large
photograph a tenth more.

A file that is no picture is a line on standard error; the others are still answered, and the exit code is 2.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import train  # a library that is missing is told in one line

import numpy as np
import pandas as pd
import torch
from PIL import Image

from train.engine import data, predict, sources
from train.engine.checkpoint import write_text
from train.engine.command import DEVICE, UserError, check_target, command, parser, warn
from train.engine.device import device_of
from train.engine.progress import progress

SIDE, LIKELIEST = 32, 3


def centre(picture):
    """uint8 (32, 32, 3): the centre square of a PIL image in RGB, made smaller with antialiasing, or larger."""
    (width, height), side = picture.size, min(picture.size)
    left, top = (width - side) // 2, (height - side) // 2
    square = picture.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def read_pictures(paths):
    """(files, images uint8 (N, 3, 32, 32), complaints): the pictures among files and in folders, in that order."""
    listed, files, images, complaints = [], [], [], []
    for path in paths:
        try:
            listed += sources.picture_files(path) if path.is_dir() else [path]
        except (UserError, OSError) as error:
            complaints.append(error)
    for file in progress(listed, "reading", unit="picture"):
        try:
            images.append(centre(sources.read_picture(file)))
            files.append(file)
        except UserError as error:
            complaints.append(error)
    images = np.stack(images) if images else np.zeros((0, SIDE, SIDE, 3), np.uint8)
    return files, data.channels_first(images), complaints


def probabilities(networks, images):
    """float64 (N, 10) of uint8 images; one network's logits are divided by the temperature stored with it."""
    temperature = networks[0].temperature if len(networks) == 1 else 1.0  # one is fitted to the network alone
    return (predict.answers(networks, images).double() / temperature).softmax(1)


def flags():
    arguments = parser(__doc__)
    add = arguments.add_argument
    add("pictures", nargs="+", type=Path, metavar="PICTURE", help="a picture, or a folder of pictures")
    add("--weights", action="append", default=[], metavar="FILE",
        help="a weights file (default: the released); given several times, the mean of their answers")
    add("--json", type=Path, metavar="FILE", help="also write the answers, with all ten probabilities, there")
    add("--csv", type=Path, metavar="FILE", help="the same as a table")
    add("--device", **DEVICE)
    return arguments


@command
def main():
    args = flags().parse_args()
    check_target("--json", args.json, ".json")
    check_target("--csv", args.csv, ".csv")
    networks = predict.load(args.weights, device_of(args.device))
    if len({network.synthetic for network in networks}) > 1:
        raise UserError("--weights: some were trained on photographs and some on generated shapes")
    names = networks[0].classes
    if networks[0].synthetic:
        warn("these weights know generated shapes and no photographs: their classes are shapes")
    files, images, complaints = read_pictures(args.pictures)
    if files:
        warn(f"every picture gets one of {', '.join(names)}, also one that shows none of them")
    chances = probabilities(networks, images) if files else torch.zeros(0, len(names))
    rows = []
    for file, row in zip(files, chances):
        file = os.fsencode(file).decode(errors="replace")  # text that any file takes
        print(f"{file}: " + ", ".join(f"{names[k]} {100 * row[k]:.1f} %" for k in row.topk(LIKELIEST).indices))
        rows.append({"file": file, "class": names[row.argmax()], "probabilities": dict(zip(names, row.tolist()))})
    if args.json:
        write_text(args.json, json.dumps(rows, indent=1) + "\n")
    if args.csv:
        table = pd.DataFrame([row | row["probabilities"] for row in rows], columns=["file", "class", *names])
        write_text(args.csv, table.to_csv(index=False))
    for error in complaints:
        warn(error)
    if complaints:
        sys.exit(2)


if __name__ == "__main__":
    main()
