"""The report's texts: the table of results in words, as Markdown, and one HTML page with everything in it."""

import base64
import html
from pathlib import Path

import pandas as pd

from train.engine.progress import duration

LEFT = ("model", "network", "protocol", "augmentation", "hardware", "command")  # the other columns are numbers


def in_words(table: pd.DataFrame) -> pd.DataFrame:
    """The table of `results.group` as texts; after a model comes the name of its runs, if different."""
    words = []
    for row in table.to_dict("records"):
        remarks = [row["name"]] * (row["name"] != row["model"]) + ["over budget"] * row["over_budget"]
        work = row["pflop"]
        digits = 0 if work >= 100 else 1 if work >= 10 else 2
        times = dict.fromkeys(duration(row[name]) for name in ("fastest", "slowest"))
        words.append({
            "model": row["model"] + (f" ({', '.join(remarks)})" if remarks else ""),
            "parameters": f"{row['parameters']:,}", "MACs": f"{row['macs'] / 1e6:,.0f} M",
            "epochs": f"{row['epochs']:,}", "protocol": row["protocol"],
            "test top-1 %": f"{row['top1']:.2f}" + (f" ± {row['std']:.2f}" if row["n"] > 1 else ""),
            "n": str(row["n"]), "95 % interval": f"{row['low']:.2f} to {row['high']:.2f}",
            "PFLOP": f"{work:,.{digits}f}" if work >= 0.01 else f"{work:.2g}", "time": " to ".join(times),
            "hardware": " on ".join(filter(None, (row["precision"], row["hardware"]))),
        })
    return pd.DataFrame(words)


def commands(table: pd.DataFrame) -> pd.DataFrame:
    """The command of each row; of several seeds, that of the first."""
    return in_words(table)[["model", "protocol"]].assign(command=table["command"])


def markdown(words: pd.DataFrame) -> str:
    """A DataFrame of texts as a Markdown table."""
    lines = [list(words.columns), ["---" if name in LEFT else "---:" for name in words.columns]]
    lines += [[" ".join(str(cell).splitlines()).replace("|", "\\|").replace("<", "&lt;") for cell in row]
              for row in words.itertuples(index=False)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>CIFAR-10 under 5,000,000 parameters</title>
<style>
body {{ font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; color: #22303c; max-width: 1240px; margin: 40px auto;
  padding: 0 24px }}
h1, h2 {{ font-weight: 600; margin: 40px 0 8px }}
h2 {{ font-size: 17px }}
.note, figcaption, summary {{ color: #5b6b79; font-size: 13.5px; max-width: 780px }}
.wide {{ overflow-x: auto }}
table {{ border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }}
th, td {{ padding: 5px 14px 5px 0; white-space: nowrap; text-align: left; vertical-align: top;
  border-bottom: 1px solid #e6eaee }}
.results :is(th, td):not(:nth-child(1), :nth-child(5), :last-child) {{ text-align: right }}
.published :is(th, td):nth-child(n+2):nth-child(-n+5) {{ text-align: right }}
.commands td:last-child, pre {{ font: 12px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; white-space: pre-wrap }}
.pair {{ display: flex; flex-wrap: wrap; gap: 24px }}
figure {{ flex: 1 1 440px; margin: 0 }}
img {{ max-width: 100% }}
</style></head><body>
<h1>CIFAR-10 under 5,000,000 parameters</h1>
<p class="note">{summary}</p>
{first}
<h2>Results</h2>
<div class="wide">{table}</div>
<p class="note">{note}</p>
<details><summary>The commands</summary>{commands}</details>
{sections}
</body></html>
"""
PICTURES = {"Accuracy, size and work": ("landscape.png", "cost.png"),
            "Mistakes and calibration": ("confusion.png", "reliability.png"), "Training": ("curves.png",)}


def page(table: pd.DataFrame, note: str, summary: str, folder: Path, pictures: dict[str, str], first: dict[str, str],
         published: pd.DataFrame | None) -> str:
    """The report as one HTML text that needs no other files.

    table: of `results.group`; pictures: {name of a file in `folder`: caption}; first: {heading: text, lines kept}, what
    comes before the table; published: the figures of others.
    """
    sections = []
    for title, names in PICTURES.items():
        figures = ""
        for name in filter(pictures.get, names):
            image, caption = base64.b64encode((folder / name).read_bytes()).decode(), html.escape(pictures[name])
            figures += (f'<figure><img alt="{caption}" src="data:image/png;base64,{image}">'
                        f"<figcaption>{caption}</figcaption></figure>")
        sections += [f'<h2>{title}</h2><div class="pair">{figures}</div>'] if figures else []
    if published is not None:
        known = as_html(published.rename(columns=lambda name: name.replace("_", " ").replace(" percent", " %")),
                        "published", {"parameters": "{:,}".format, "test accuracy %": "{:.2f}".format})
        sections.append(f'<h2>Published by others</h2><div class="wide">{known}</div>')
    first = "\n".join(f"<h2>{html.escape(title)}</h2><pre>{html.escape(text)}</pre>" for title, text in first.items())
    return PAGE.format(summary=html.escape(summary), first=first, table=as_html(in_words(table), "results"),
                       note=html.escape(note), commands=as_html(commands(table), "commands"),
                       sections="\n".join(sections))


def as_html(words: pd.DataFrame, kind: str, formatters: dict | None = None) -> str:
    """A DataFrame as an HTML table; kind: a class of the page's style."""
    with pd.option_context("display.max_colwidth", None):
        return words.to_html(index=False, border=0, classes=kind, na_rep="", formatters=formatters,
                             float_format="{:g}".format)
