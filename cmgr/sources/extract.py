"""A page's bytes -> its main text as Markdown, its title, its licence."""

from __future__ import annotations

import codecs
import io
import re
from dataclasses import dataclass

from cmgr.errors import missing_extra
from cmgr.sources.web import SourceError

PDF_PAGES = 300
_META = re.compile(rb"<meta[^>]{0,200}charset\s*=\s*[\"']?\s*([\w-]{2,40})", re.IGNORECASE)
_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"))


@dataclass(frozen=True)
class Text:
    """What a page says: Markdown, with what is known of it."""

    markdown: str
    title: str = ""
    license: str | None = None


def extract(body: bytes, content_type: str, url: str) -> Text:
    """The main text of HTML (trafilatura), PDF (pypdf) or plain text; no script is run.

    Raises SourceError where there is none, MissingError where the extra is not installed.
    """
    if body.lstrip()[:5] == b"%PDF-":
        return _pdf(body)
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/pdf":
        raise SourceError("not text", f"{url}: it says that it is a PDF, and is none")
    if _binary(body):
        raise SourceError("binary", f"{url}: binary data, whatever it says it is")
    text = decode(body, content_type)
    if not text.strip():
        raise SourceError("empty")
    looks_html = re.search(r"<(?:!doctype html|html|head|body|p|div)\b", text[:5000], re.IGNORECASE)
    if kind in {"text/plain", "text/markdown"} and not looks_html:
        return Text(text)
    return _html(text, url)


def _html(text: str, url: str) -> Text:
    try:
        import trafilatura
        from trafilatura.metadata import extract_metadata
    except ImportError:
        raise missing_extra("search", "reading web pages") from None

    markdown = trafilatura.extract(
        text,
        url=url,
        fast=True,
        include_comments=False,
        include_formatting=True,
        output_format="markdown",
    )
    if not markdown:
        raise SourceError("empty", f"{url}: no text in it")
    about = extract_metadata(text, default_url=url, extensive=False)
    return Text(markdown, (about.title or "").strip(), _license(text) or about.license)


def _license(text: str) -> str | None:
    """The licence that a page links to as its own; Creative Commons' by their short names."""
    for tag in re.findall(r"<(?:a|link)\b[^>]{0,1000}>", text, re.IGNORECASE):
        if re.search(r"\brel\s*=\s*[\"']?[^\"'>]*\blicense\b", tag, re.IGNORECASE):
            found = re.search(r"\bhref\s*=\s*[\"']?([^\"'\s>]+)", tag, re.IGNORECASE)
            if found:
                return license_name(found[1])
    return None


def license_name(url: str) -> str:
    """`CC-BY-SA-4.0` for Creative Commons' addresses, others as they are."""
    path = r"creativecommons\.org/(licenses|publicdomain)/([a-z-]+)/(\d\.\d)"
    found = re.search(path, url, re.IGNORECASE)
    if not found:
        return url[:200]
    name = {"zero": "CC0", "mark": "PDM"}.get(found[2].lower(), f"CC-{found[2].upper()}")
    return f"{name}-{found[3]}"


def _pdf(body: bytes) -> Text:
    try:
        from pypdf import PdfReader
        from pypdf.errors import PyPdfError
    except ImportError:
        raise missing_extra("search", "reading PDF files") from None

    try:
        reader = PdfReader(io.BytesIO(body))
        if reader.is_encrypted and not reader.decrypt(""):
            raise SourceError("encrypted", "an encrypted PDF")
        pages = [page.extract_text() for page in reader.pages[:PDF_PAGES]]
        title = str(reader.metadata.title or "") if reader.metadata else ""
    except (PyPdfError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SourceError("broken PDF", f"a PDF that cannot be read: {error}") from None
    text = "\n\n".join(_paragraphs(page) for page in pages if page.strip())
    if not text:
        raise SourceError("empty", "a PDF without text (pictures of pages, perhaps)")
    return Text(text, title.strip())


def _paragraphs(page: str) -> str:
    """A page's lines as paragraphs: one ends at an empty line, or where a short line ends it."""
    page = re.sub(r"(\w)-\n(?=[a-zß-ÿ])", r"\1", page)
    lines = [line.strip() for line in page.split("\n")]
    width = sorted(len(line) for line in lines)[int(len(lines) * 0.8)]
    out = ""
    for line in lines:
        line = re.sub(r"^#+\s", "", line)
        ends = len(line) < width * 0.75 and line.endswith((".", "!", "?", "。", ":"))
        out += (line + ("\n\n" if ends else "\n")) if line else "\n"
    return out


def _binary(body: bytes) -> bool:
    head = body[:4096]
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return False
    control = sum(byte < 9 or (13 < byte < 32 and byte != 27) for byte in head)
    return b"\0" in head or control * 20 > len(head)


def decode(body: bytes, content_type: str) -> str:
    """Bytes as text: what is valid UTF-8 is UTF-8, whatever the server or the page says."""
    for bom, name in (*_BOMS, (codecs.BOM_UTF16_BE, "utf-16-be")):
        if body.startswith(bom):
            return body[len(bom) :].decode(name, errors="replace")
    said = re.search(r"charset\s*=\s*[\"']?\s*([\w-]+)", content_type, re.IGNORECASE)
    meta = _META.search(body[:4096])
    names = ["utf-8", said[1] if said else "", meta[1].decode() if meta else ""]
    for name in names:
        try:
            if name:
                return body.decode(name)
        except (UnicodeDecodeError, LookupError):
            continue
    from charset_normalizer import from_bytes

    best = from_bytes(body[:50_000]).best()
    return body.decode(best.encoding if best else "latin-1", errors="replace")
