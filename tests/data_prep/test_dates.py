"""Dates from file names, metadata items and CF time axes."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest

from data_prep.rasters.dates import UNKNOWN, from_cf, from_name, from_pattern, from_tags


def at(*parts: int) -> int:
    return int(datetime(*parts, tzinfo=UTC).timestamp())  # type: ignore[misc]


def day(*parts: int) -> tuple[int, int]:
    return at(*parts), at(*parts) + 86399


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("m_4709963_se_14_1_20090818", day(2009, 8, 18)),
        ("1985", (at(1985, 1, 1), at(1986, 1, 1) - 1)),
        ("composite_2020", (at(2020, 1, 1), at(2021, 1, 1) - 1)),
        ("ndvi_2020-02", (at(2020, 2, 1), at(2020, 3, 1) - 1)),
        ("x_2019-12", (at(2019, 12, 1), at(2020, 1, 1) - 1)),
        ("scene.2016.02.29", day(2016, 2, 29)),
        ("S2A_MSIL2A_20170617T113321_N0205_R080_T29UPU_20170617T113319_B02", (at(2017, 6, 17, 11, 33, 21),) * 2),
        (
            "S1A_IW_GRDH_1SDV_20200103T054201_20200103T054226_030629_038266_1A2B",
            (at(2020, 1, 3, 5, 42, 1), at(2020, 1, 3, 5, 42, 26)),
        ),
        ("LC08_L2SP_034032_20200712_20200913_02_T1_SR_B4", day(2020, 7, 12)),
        ("shot_20200102T030405", (at(2020, 1, 2, 3, 4, 5),) * 2),
        ("20200102_b_2020-01-02", day(2020, 1, 2)),
        ("201404_13SED190110_201404_0x1500m_CL_1", UNKNOWN),
        ("RGB.byte", UNKNOWN),
        ("20209999", UNKNOWN),
        ("tile2020", UNKNOWN),
    ],
)
def test_names(name: str, expected: tuple[int, int]) -> None:
    assert from_name(name) == expected


def test_two_dates_are_not_guessed_between() -> None:
    with pytest.raises(ValueError, match="several dates in its name: 20200830, 20210101"):
        from_name("a_20200830_20210101")
    with pytest.raises(ValueError, match="1999, 2000"):
        from_name("1999_2000")


def test_pattern() -> None:
    pattern = r"_(?P<day>\d\d)(?P<month>\d\d)(?P<year>\d{4})"
    assert from_pattern("a_18082009", pattern) == day(2009, 8, 18)
    with pytest.raises(ValueError, match="no date that"):
        from_pattern("a", pattern)
    with pytest.raises(ValueError, match="'_18132009' is no date"):
        from_pattern("a_18132009", pattern)


def test_tags() -> None:
    assert from_tags({"ACQUISITIONDATETIME": "2020-06-01 10:20:30"}) == (at(2020, 6, 1, 10, 20, 30),) * 2
    assert from_tags({"DATE_ACQUIRED": "2020-06-01"}) == day(2020, 6, 1)
    assert from_tags({"datetime": "2020-06-01T10:00:00+02:00"}) == (at(2020, 6, 1, 8),) * 2
    assert from_tags({"system:time_start": "1590969600000", "system:time_end": "1591056000000"}) == (
        at(2020, 6, 1),
        at(2020, 6, 2),
    )
    assert from_tags({"TIFFTAG_DATETIME": "2020:06:01 10:20:30", "datetime": "soon"}) == UNKNOWN


@pytest.mark.parametrize(
    ("values", "units", "calendar", "expected"),
    [
        ([11170, 11747], "days since 1990-01-01", "proleptic_gregorian", [at(2020, 8, 1), at(2022, 3, 1)]),
        ([0.5], "days since 2000-02-28 12:00", "", [at(2000, 2, 29)]),
        ([36], "hours since 2000-01-01T00:00:00Z", "gregorian", [at(2000, 1, 2, 12)]),
        ([90], "minutes since 2000-1-1 00:00:0.0", "standard", [at(2000, 1, 1, 1, 30)]),
        ([1], "seconds since 2000-01-01 02:00:00 +02:00", "", [at(2000, 1, 1, 0, 0, 1)]),
        ([0], "seconds since 2000-01-01 00:00:00 -0530", "", [at(2000, 1, 1, 5, 30)]),
        ([1], "d since 1970-01-01 00:00:00 UTC", "", [86400]),
        ([0], "days since 0001-01-01", "proleptic_gregorian", [at(1, 1, 1)]),
    ],
)
def test_cf(values: list[float], units: str, calendar: str, expected: list[int]) -> None:
    found = from_cf(np.array(values), units, calendar)
    assert found.dtype == np.int64 and found.tolist() == expected


@pytest.mark.parametrize(
    ("units", "calendar", "why"),
    [
        ("days since 2000-01-01", "360_day", "no real dates"),
        ("days since 2000-01-01", "noleap", "no real dates"),
        ("months since 2000-01-01", "", "time unit 'months'"),
        ("days", "", "not of the form"),
        ("days since 2000-02-30", "", "no real date"),
        ("days since 0001-01-01", "standard", "before the Gregorian"),
    ],
)
def test_cf_that_is_refused(units: str, calendar: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        from_cf(np.arange(3), units, calendar)


def test_cf_against_numpy() -> None:
    values = np.random.default_rng(0).integers(-10_000, 30_000, 100)
    expected = (np.datetime64("1990-01-01") + values).astype("datetime64[s]").astype(np.int64)
    assert np.array_equal(from_cf(values, "days since 1990-01-01"), expected)
    with pytest.raises(ValueError, match="not numbers"):
        from_cf(np.array([1.0, np.nan]), "days since 1990-01-01")
