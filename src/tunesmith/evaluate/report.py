"""The report: results as one page that needs nothing else, in light and dark; no scripts, and all content escaped."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape

from tunesmith.evaluate.outcome import Confusion, Sample
from tunesmith.evaluate.results import Results, Row, Section, number

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
LONGEST = 4000
"""Characters of a text that are shown."""

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --good: #1a7f4b; --bad: #c0392b; }
@media (prefers-color-scheme: dark) { :root { --good: #5fd39a; --bad: #ff8a7a; } }
body { font: 16px/1.5 system-ui, "Noto Sans", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", sans-serif;
       max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem } h2 { font-size: 1.2rem; margin-top: 2.5rem } h3 { font-size: 1rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; margin: .5rem 0 }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .8rem; text-align: left; vertical-align: top }
td.figure { white-space: nowrap; font-variant-numeric: tabular-nums }
.better { color: var(--good) } .worse { color: var(--bad) }
.soft { opacity: .7; font-size: .9rem }
.sample { border: 1px solid var(--line); border-radius: .5rem; padding: .3rem 1rem; margin: .8rem 0 }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--soft); border-radius: .3rem;
      padding: .4rem .6rem; margin: .2rem 0 .6rem; font: inherit }
dt { font-weight: 600; font-size: .9rem } dd { margin: 0 }
"""


def page(results: Results) -> str:
    """The whole page as HTML."""
    title = f"Evaluation of {results.target}"
    body = [
        f"<h1>{escape(title)}</h1>",
        _list(results.findings),
        _table(results),
        *(_section(section) for section in results.sections),
        _settings(results),
    ]
    return (
        f'<!doctype html>\n<html lang="{escape(_language(results.language))}">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )


def _table(results: Results) -> str:
    heads = "".join(f"<th>{escape(column)}</th>" for column in ("", *results.columns, ""))
    rows = "".join(_row(row, results.columns) for section in results.sections for row in section.table)
    note = "Each figure with the interval that holds it in 95 of 100 cases. Unclear: the rows show no difference."
    return f'<div class="scroll"><table><tr>{heads}</tr>{rows}</table></div>\n<p class="soft">{note}</p>'


def _row(row: Row, columns: tuple[str, ...]) -> str:
    arrow = "↑" if row.better == "higher" else "↓"
    cells = "".join(f'<td class="figure">{escape(text)}</td>' for text in row.cells(columns))
    kind = row.verdict if row.verdict in ("better", "worse") else "soft"
    verdict = f'<td class="{kind}">{escape(row.verdict)}</td>'
    return f"<tr><th>{escape(row.name)} {arrow}</th>{cells}{verdict}</tr>\n"


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.name)}</h2>", f'<p class="soft">{section.rows:,} rows</p>']
    parts += [_confusion(column, table) for column, table in section.confusion.items()]
    parts += [_samples("Best", section.best), _samples("Worst", section.worst)]
    return "\n".join(part for part in parts if part)


def _confusion(column: str, table: Confusion) -> str:
    heads = "".join(f"<th>{escape(label)}</th>" for label in table.labels)
    rows = "".join(
        f"<tr><th>{escape(label)}</th>" + "".join(f'<td class="figure">{count:,}</td>' for count in counts) + "</tr>"
        for label, counts in zip(table.labels, table.counts, strict=True)
    )
    title = f"<h3>{escape(column)}: right label (rows) against chosen label (columns)</h3>"
    return f'{title}<div class="scroll"><table><tr><th></th>{heads}</tr>{rows}</table></div>'


def _samples(title: str, samples: Sequence[Sample]) -> str:
    if not samples:
        return ""
    return f"<h3>{title}</h3>" + "\n".join(_sample(sample) for sample in samples)


def _sample(sample: Sample) -> str:
    parts = [("prompt", sample.case.prompt), ("reference", sample.case.reference)]
    for column, score in sample.scores.items():
        parts.append((f"{column} (score {number(score)})", sample.answers.get(column, "")))
    terms = "".join(f"<dt>{escape(name)}</dt><dd>{_text(text)}</dd>" for name, text in parts)
    return f'<div class="sample"><p class="soft">{escape(sample.case.place)}</p><dl>{terms}</dl></div>'


def _text(text: str) -> str:
    shown = text if len(text) <= LONGEST else f"{text[:LONGEST]} … ({len(text):,} characters)"
    return f'<pre dir="auto">{escape(shown)}</pre>' if shown else ""


def _settings(results: Results) -> str:
    settings = json.dumps(dict(results.settings), ensure_ascii=False, indent=2)
    prints = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in results.fingerprints.items())
    return (
        f"<h2>How it was measured</h2>{_list(results.notes)}<details><summary>Settings</summary>{_text(settings)}"
        f"</details><details><summary>Fingerprints</summary><dl>{prints}</dl></details>"
    )


def _list(lines: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def _language(found: str) -> str:
    return "en" if found == "spaced" else found
