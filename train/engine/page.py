"""How a report reads: the table of results in words, as Markdown, and a page with everything in it."""

import base64
import html

import pandas as pd

from train.engine.progress import duration
from train.engine.results import HUMANS

LEFT = ("model", "protocol", "hardware", "command")  # the other columns are numbers


def in_words(table):
    """The table of `results.group` as people read it, a DataFrame of texts; commands only as targets of make.

    The model is followed by what its runs are called where that says more: `seresnet20-8 (student)`.
    """
    words = []
    for row in table.to_dict("records"):
        remarks = [row["name"]] * (row["name"] != row["model"]) + ["teacher"] * row["over_budget"]
        deviation = f" ± {row['deviation']:.2f}" if row["n"] > 1 else ""
        work, pure = row["pflop"], row["contaminated"] is False
        times = dict.fromkeys(duration(row[name]) for name in ("fastest", "slowest"))
        digits = 0 if work >= 100 else 1 if work >= 10 else 2
        words.append({
            "model": row["model"] + (f" ({', '.join(remarks)})" if remarks else ""),
            "parameters": f"{row['parameters']:,}", "MACs": f"{row['macs'] / 1e6:,.0f} M",
            "epochs": f"{row['epochs']:,}", "protocol": row["protocol"],
            "test top-1 %": f"{row['top1']:.2f}{deviation}" if pure else "contaminated", "n": str(row["n"]),
            "95 % interval": f"{row['low']:.2f} to {row['high']:.2f}" if pure else "",
            **{heading: "" if pd.isna(row[name]) else f"{row[name]:.2f}"
               for name, heading in zip(HUMANS, ("corrected %", "without twins %")) if name in row},
            "PFLOP": "" if pd.isna(work) else f"{work:,.{digits}f}" if work >= 0.01 else f"{work:.2g}",
            "time": " to ".join(times), "hardware": " on ".join(filter(None, (row["precision"], row["hardware"]))),
            "command": f"`make {row['make']}`" if row["make"] else "",
        })
    words = pd.DataFrame(words)
    return words if words["command"].any() else words.drop(columns="command")


def commands(table):
    """The command of each row, a DataFrame of texts; of several seeds the first one's."""
    words = in_words(table)[["model", "protocol"]].assign(command=table["command"])
    return words[words["command"] != ""]


def markdown(words):
    """A DataFrame of texts as a Markdown table."""
    lines = [list(words.columns), ["---" if name in LEFT else "---:" for name in words.columns]]
    lines += [[str(cell).replace("|", "\\|") for cell in row] for row in words.itertuples(index=False)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


# ---------------------------------------------------------------- the page


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>CIFAR-10 under 5,000,000 parameters</title>
<style>
body {{ font: 15px/1.5 system-ui, "Segoe UI", "Helvetica Neue", "DejaVu Sans", sans-serif; color: #22303c;
  max-width: 1240px; margin: 40px auto; padding: 0 24px }}
h1 {{ font-size: 25px; font-weight: 600; margin: 0 0 4px }}
h2 {{ font-size: 17px; font-weight: 600; margin: 40px 0 8px }}
p {{ max-width: 780px }}
.note, figcaption, summary {{ color: #5b6b79; font-size: 13.5px }}
.wide {{ overflow-x: auto }}
table {{ border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }}
th {{ font-weight: 600; border-bottom: 1px solid #7d8b99; vertical-align: bottom }}
th, td {{ padding: 5px 14px 5px 0; white-space: nowrap; text-align: left }}
td {{ border-bottom: 1px solid #e6eaee; vertical-align: top }}
.results :is(th, td):not(:nth-child(1), :nth-child(5), :last-child) {{ text-align: right }}
.published :is(th, td):nth-child(n+2):nth-child(-n+5) {{ text-align: right }}
.commands td:last-child, pre {{ font: 12px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; white-space: pre-wrap }}
figure {{ margin: 0 }}
img {{ max-width: 100%; height: auto; display: block }}
.pair {{ display: flex; flex-wrap: wrap; gap: 24px }}
.pair figure {{ flex: 1 1 440px }}
</style></head><body>
<h1>CIFAR-10 under 5,000,000 parameters</h1>
<p class="note">{summary}</p>
<h2>Results</h2>
<div class="wide">{table}</div>
<p class="note">{note}</p>
<details><summary>The commands</summary>{commands}</details>
{sections}
</body></html>
"""
PICTURES = {"Accuracy, size and work": ("landscape.png", "cost.png"), "Training": ("curves.png",),
            "One run of the best row": ("confusion.png", "reliability.png")}


def page(table, note, summary, folder, pictures, further, published=None):
    """The report as one HTML text.

    table: of `results.group`; pictures: {name of a file in `folder`: caption}; further: {heading: text, lines kept};
    published: the DataFrame of published figures.
    """
    sections = [f"<h2>{title}</h2><pre>{html.escape(text)}</pre>" for title, text in further.items()]
    for title, names in PICTURES.items():
        figures = ""
        for name in filter(pictures.get, names):
            image, caption = base64.b64encode((folder / name).read_bytes()).decode(), html.escape(pictures[name])
            figures += (f'<figure><img alt="{caption}" src="data:image/png;base64,{image}">'
                        f"<figcaption>{caption}</figcaption></figure>")
        sections += [f'<h2>{title}</h2><div class="pair">{figures}</div>'] if figures else []
    if published is not None:
        known = published.assign(parameters=published["parameters"].map("{:,}".format),
                                 test_accuracy_percent=published["test_accuracy_percent"].map("{:.2f}".format))
        known.columns = [name.replace("_", " ").replace(" percent", " %") for name in known.columns]
        sections.append(f'<h2>Published by others</h2><div class="wide">{as_html(known, "published")}</div>')
    words = in_words(table).drop(columns="command", errors="ignore")
    return PAGE.format(summary=html.escape(summary), table=as_html(words, "results"), note=html.escape(note),
                       commands=as_html(commands(table), "commands"), sections="\n".join(sections))


def as_html(words, kind):
    """A DataFrame as an HTML table of a class of the page's style."""
    with pd.option_context("display.max_colwidth", None):
        return words.to_html(index=False, border=0, classes=kind, na_rep="", float_format="{:g}".format)
