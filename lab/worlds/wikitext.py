"""Wikipedia's markup as plain text with headings: what a reader sees, without tables and pictures."""

import html
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

_PAGE = re.compile(
    r"<page>\s*<title>(?P<title>.*?)</title>.*?<text xml:space=\"preserve\">(?P<text>.*?)</text>",
    re.DOTALL,
)
_CATEGORY = re.compile(r"\[\[Category:\s*([^\]|\n]+)", re.IGNORECASE)
_HEADING = re.compile(r"^=+[ \t]*(.*?)[ \t]*=+[ \t]*$")
_GONE = [
    re.compile(r"<!--.*?-->", re.DOTALL),
    re.compile(
        r"<(ref|math|gallery|timeline|pre|table|imagemap|hiero|code)\b[^<>]*?"
        r"(?:/>|>.*?</\1\s*>)",
        re.DOTALL | re.IGNORECASE,
    ),
]
_NESTED = [re.compile(r"\{\{[^{}]*\}\}"), re.compile(r"\{\|(?:(?!\{\||\|\}).)*\|\}", re.DOTALL)]
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
_LINK = re.compile(r"\[\[([^\[\]]*)\]\]")
_PREFIXED = re.compile(
    r"\s*:?\s*(?:[a-z]{2,3}(?:-[a-z]+)?|simple|Image|File|Media|Category)\s*:", re.I
)
_OUTSIDE = re.compile(r"\[(?:https?|ftp|mailto|news|irc):[^\s\]]*[ \t]*([^\]\n]*)\]")
_ADDRESS = re.compile(r"\b(?:https?|ftp)://\S+")
_QUOTES = re.compile(r"'{2,5}")
_MARKED = re.compile(r"^[*#:;]+[ \t]*")
# Where a formula, a note or a picture went.
_EMPTY = re.compile(r"[ \t]*\([ \t,;]*\)")
_BEFORE_MARK = re.compile(r"[ \t]+([,.;)](?:\s|$))", re.MULTILINE)
_LEFT_OVER = re.compile(r"^[ \t]*(?:\{\||\|\}|[|!}{]|__[A-Z]+__).*$", re.MULTILINE)

_MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
_LISTS = re.compile(
    rf"\d+(?:s|st|nd|rd|th)?\b|(?:{_MONTHS}) \d+$|Lists? of |Timeline |.*\(disambiguation\)$"
)


class Page(NamedTuple):
    """One page: its title, its categories, and its paragraphs, each with the heading above it (the
    outermost one; "" before the first)."""

    title: str
    categories: list[str]
    paragraphs: list[tuple[str, str]]


def pages(dump: str) -> Iterator[Page]:
    """The pages of a dump in order, with redirects and pages of other namespaces left out."""
    for match in _PAGE.finditer(dump):
        text = html.unescape(match["text"])
        title = html.unescape(match["title"])
        named = re.match(
            r"(?:Wikipedia|Talk|Image|Template|MediaWiki|Category|User|Portal|Help):", title
        )
        if not named and not re.match(r"\s*#\s*redirect", text, re.IGNORECASE):
            yield Page(title, _CATEGORY.findall(text), paragraphs(text))


def paragraphs(markup: str) -> list[tuple[str, str]]:
    """(heading, paragraph) in order; an item of a list is a line that begins with "- "."""
    text = markup
    for pattern in _GONE:
        text = pattern.sub("", text)
    for pattern in _NESTED:
        text = _until_still(pattern, "", text)
    text = _until_still(_LINK, _words, _TAG.sub("", text))
    text = _ADDRESS.sub("", _OUTSIDE.sub(r"\1", _LEFT_OVER.sub("", text)))
    text = html.unescape(_QUOTES.sub("", text)).replace("\xa0", " ")
    text = _BEFORE_MARK.sub(r"\1", _EMPTY.sub("", text))
    heading, found = "", []
    open_: list[str] = []
    for line in [*text.split("\n"), ""]:
        title = _HEADING.match(line)
        plain = " ".join(_MARKED.sub("- " if line[:1] in "*#" else "", line).split())
        if title or len(plain.strip("- .,;:")) < 2:
            if open_:
                found.append((heading, "\n".join(open_)))
                open_ = []
            if title and not line.startswith("==="):
                heading = " ".join(title[1].split())
        else:
            open_.append(plain)
    return found


def _until_still(pattern: re.Pattern[str], by: Any, text: str) -> str:
    """What is nested is replaced from the inside out."""
    while (after := pattern.sub(by, text)) != text:
        text = after
    return text


def _words(link: re.Match[str]) -> str:
    """What a link shows; nothing for pictures, categories and other languages."""
    target, bar, shown = link[1].partition("|")
    if _PREFIXED.match(target):
        return ""
    return shown.rpartition("|")[2] if bar else target


def is_list(title: str) -> bool:
    """Whether a page of this title lists things: a year, a day, "List of …"."""
    return bool(_LISTS.match(title))
