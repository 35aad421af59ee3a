"""The shop that every dialect exports: 300 events, 40 items, 30 users, with the values that exports get wrong.

Item ids are texts with leading zeros, user ids integers; a region is called ``NA``, a brand ``null``; prices have
decimals, times milliseconds; titles have quotes, commas, semicolons and letters outside ASCII; there are missing
brands, ages and days of joining, and a list of tags for each item, some empty.
"""

from __future__ import annotations

import datetime
import random
from typing import Any

UTC = datetime.UTC
REGIONS = ("NA", "EU", "APAC")
BRANDS = ("null", "Nordlicht", "N/A", "Müller", None)
TAGS = ("new", "sale", "blue", "wool", "kids")
TITLES = ('Lamp "Aurora", small', "Teppich; rot, groß", "It's a rug", "Пальто 100%", "Vase", "Tea 茶 set")


def moment(rng: random.Random, first: datetime.datetime, days: int) -> datetime.datetime:
    """Some millisecond within these days."""
    return first + datetime.timedelta(milliseconds=rng.randrange(days * 86_400_000))


def items() -> list[dict[str, Any]]:
    """Item 7's row is the first with a missing brand; items 0 to 39 have ids 00000 to 00039 times 37."""
    rng = random.Random(1)
    listed = datetime.datetime(2025, 11, 3, tzinfo=UTC)
    return [
        {
            "item": f"{37 * number:05d}",
            "title": f"{rng.choice(TITLES)} no. {number % 9}",
            "region": REGIONS[number % 3],
            "brand": BRANDS[rng.randrange(5)],
            "price": round(rng.uniform(1, 2000), 2),
            "in_stock": rng.random() < 0.7,
            "listed_at": moment(rng, listed, 120),
            "tags": rng.sample(TAGS, rng.randrange(1, 4)),
        }
        for number in range(40)
    ]


def users() -> list[dict[str, Any]]:
    """Users 5001 to 5030; some are of no known age or day of joining."""
    rng = random.Random(2)
    return [
        {
            "user": 5001 + number,
            "region": REGIONS[rng.randrange(3)],
            "age": None if rng.random() < 0.3 else rng.randrange(18, 80),
            "vip": rng.random() < 0.2,
            "joined": None if rng.random() < 0.2 else moment(rng, datetime.datetime(2024, 1, 1, tzinfo=UTC), 700),
        }
        for number in range(30)
    ]


def events() -> list[dict[str, Any]]:
    """In the order of time, from February 1 to March 20, 2026."""
    rng = random.Random(3)
    first = datetime.datetime(2026, 2, 1, 12, 30, 15, tzinfo=UTC)
    catalogue, people = items(), users()
    times = sorted(moment(rng, first, 46) for _ in range(300))
    return [
        {
            "user": rng.choice(people)["user"],
            "item": rng.choice(catalogue)["item"],
            "at": time,
            "action": rng.choice(("click", "click", "purchase")),
            "value": round(rng.uniform(0, 500), 2),
        }
        for time in times
    ]
