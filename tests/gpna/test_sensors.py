"""Descriptors of sensors, binding to manifests, and the grid of tokens."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from data_prep.readers import _sustainbench_landsat as landsat
from data_prep.readers import geobench_tasks, sustainbench_crop_type, sustainbench_crop_yield, sustainbench_landcover
from data_prep.scenes_spectra import S1_BANDS, S2_BANDS
from data_prep.source import Band as StoredBand
from data_prep.source import ImageColumn
from data_prep.tiles import sensors as tiles
from frontier.cli import main as frontier
from frontier.config.load import validate
from frontier.errors import UserError
from frontier.train.plan import resolve
from gpna.descriptor import default_stem
from gpna.predict import open_split
from gpna.sensors import Band, InputSpec, bands_of, find_sensor, input_spec, known_sensors, vector_of
from tests.data.sets import write_set
from tests.gpna.sets import describe


def entry(bands, axes="CHW", side=64, steps=4, **about):
    sizes = {"T": steps, "C": len(bands), "H": side, "W": side, "K": side}
    return ImageColumn(tuple(sizes[axis] for axis in axes), "float32", tuple(bands), axes=axes, **about).as_dict()


def stems(bands):
    return [band.stem for band in bands]


@pytest.mark.parametrize("name", known_sensors())
def test_every_descriptor_is_sound(name):
    sensor = find_sensor(name)
    assert sensor.name == name and sensor.bands
    for key, band in sensor.bands.items():
        assert sensor.find(key.lower()) is band and band.stem
        assert band.kind != "optical" or (band.centre_nm and band.width_nm)


def test_descriptors_agree_with_the_bands_that_data_prep_writes():
    sentinel2 = find_sensor("sentinel2").bands
    for band in S2_BANDS:
        assert (sentinel2[band.name].centre_nm, sentinel2[band.name].width_nm) == (band.centre_nm, band.width_nm)
    modis = find_sensor("modis").bands
    for band in sustainbench_crop_yield.BANDS:
        assert modis[band.name].centre_nm == band.centre_nm
    planet = find_sensor("planet").bands
    for band in sustainbench_crop_type.BANDS["planet"]:
        assert (planet[band.name].centre_nm, planet[band.name].width_nm) == (band.centre_nm, band.width_nm)
    for band in sustainbench_landcover.BANDS:
        assert find_sensor("naip").bands[band.name].centre_nm == band.centre_nm


def test_sensors_share_stems_where_they_share_spectral_regions():
    def stem(sensor, band):
        return find_sensor(sensor).find(band).stem

    red = {stem("sentinel2", "B04"), stem("landsat_oli", "B4"), stem("landsat_etm", "RED"), stem("naip", "red")}
    assert red | {stem("modis", "sur_refl_b01"), stem("planet", "RED"), stem("rgb", "R")} == {"optical_red"}
    assert stem("sentinel2", "B08") == stem("landsat_tm", "B4") == "optical_nir"
    assert stem("sentinel2", "B8A") == stem("landsat_oli", "B5") == "optical_nir08"
    assert len(set(stems(find_sensor("sentinel2").bands.values()))) == 15  # within one sensor, each band has its own
    assert stem("landsat_oli", "B8") == "optical_pan" and stem("landsat_tm", "B6") == "optical_lwir"
    assert stem("night_lights", "VIIRS") != "optical_pan"  # emitted light is no reflectance


def test_optical_bands_need_the_manifest_only():
    bands = bands_of(entry([StoredBand("a", 664.6, 31), StoredBand("b", 865.0, None)], sensor=None))
    assert [(band.kind, band.centre_nm, band.width_nm) for band in bands] == [
        ("optical", 664.6, 31),
        ("optical", 865.0, None),
    ]
    assert stems(bands) == ["optical_red", "optical_nir08"]


def test_radar_bands_are_recognised_and_their_wavelength_is_none():
    bands = bands_of(entry(S1_BANDS))
    assert [(band.kind, band.radar_band, band.polarisation, band.centre_nm) for band in bands] == [
        ("sar", "C", "VV", None),
        ("sar", "C", "VH", None),
    ]
    (longer,) = bands_of(entry([StoredBand("HV", 235e6)]))  # ALOS PALSAR, 23.5 cm
    assert (longer.radar_band, longer.stem) == ("L", "sar_l_hv")
    mixed = bands_of(entry(sustainbench_crop_type.BANDS["s1"], sensor="Sentinel-1"))
    assert stems(mixed) == ["sar_c_vv", "sar_c_vh", "sar_c_ratio"] and mixed[2].kind == "variable"
    parts = [band for _, band in geobench_tasks.TASKS["m-so2sat"].inputs["s1"].bands]
    assert {band.kind for band in bands_of(entry(parts, sensor="Sentinel-1"))} == {
        "variable"
    }  # real, imaginary, filtered


def test_the_bands_of_the_survey_images_are_told_by_the_sensor_text():
    column, _ = landsat.image_columns()
    bands = bands_of(column.as_dict())
    assert stems(bands)[-3:] == ["optical_nir", "night_dmsp", "night_viirs"]
    assert stems(bands)[5] == "optical_lwir" and all(band.kind == "optical" for band in bands)
    assert bands[-1].units == "nW/cm2/sr" and bands[-1].centre_nm == 700


def test_other_bands_are_variables_or_colours():
    bands = bands_of(entry(sustainbench_crop_yield.BANDS, "TCK", 32, 32, sensor="MODIS MOD09A1 and MYD11A2"))
    assert (bands[-1].kind, bands[-1].units, bands[-1].stem) == ("variable", "K", "variable_lst_night_1km")
    colours = bands_of(entry(tiles._COLOUR))
    assert stems(colours) == ["optical_red", "optical_green", "optical_blue", "optical_nir"]
    (speed,) = bands_of(entry([StoredBand("Wind speed (10 m)")], units="m/s"))
    assert (speed.kind, speed.stem, speed.units) == ("variable", "variable_wind_speed_10_m", "m/s")


def test_bands_without_a_real_name_share_nothing_with_other_inputs():
    nameless = [StoredBand("band_1")]
    (one,), (other,) = (bands_of(entry(nameless), where=where) for where in ("rivers", "roads"))
    assert one.stem != other.stem and one.name != other.name


def test_a_named_sensor_decides():
    stored = [StoredBand("blue", 999.0, 5), StoredBand("B8")]
    bands = bands_of(entry(stored), "sentinel2")
    assert [(band.name, band.centre_nm) for band in bands] == [("blue", 492.4), ("B8", 832.8)]
    (renamed,) = bands_of(entry([StoredBand("t2m")]), "era5")
    assert renamed.name == "temperature_2m"  # its learned identity is the same under both names
    with pytest.raises(UserError, match=r"brick kilns: band B8B is not in .*sentinel2.yaml: did you mean B"):
        bands_of(entry([StoredBand("B8B")]), "sentinel2", where="brick kilns")
    with pytest.raises(UserError, match="no sensor 'sentinel3': did you mean sentinel"):
        bands_of(entry([StoredBand("B1")]), "sentinel3")
    with pytest.raises(UserError, match="two bands are called temperature_2m"):
        bands_of(entry([StoredBand("t2m"), StoredBand("temperature")]), "era5")


OUTAGES = """
name: outages
gsd_m: 500
bands:
  share_without_power: {kind: variable, units: "1", mean: 0.03, std: 0.11}
  B4: {kind: optical, centre_nm: 655, width_nm: 30, stem: outages-red, also: [red]}
"""


def test_a_users_own_yaml(tmp_path):
    path = tmp_path / "outages.yaml"
    path.write_text(OUTAGES)
    spec = input_spec(entry([StoredBand("share_without_power")], side=100, scale=0.01, offset=1.0), str(path))
    assert (spec.gsd_m, spec.footprint, spec.grid) == (500, 8, (1, 13, 13, 1))
    assert np.allclose([*spec.mean, *spec.std], [(0.03 - 1) / 0.01, 0.11 / 0.01])  # stored units
    assert find_sensor(path).find("RED").stem == "outages-red"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("kind: variable|kind: varable", "band share_without_power: kind: 'varable': did you mean variable"),
        ("units:|unit:", "band share_without_power: unknown key 'unit': did you mean units"),
        ("gsd_m|gsd", "unknown key 'gsd': did you mean gsd_m"),
        ("gsd_m: 500|says: [outages]", "unknown key 'says'"),
        ("gsd_m: 500|gsd_m: -3", "gsd_m: -3 is not a positive number"),
        ("centre_nm: 655, |", "band B4: centre_nm: is missing"),
        ("centre_nm: 655|centre_nm: 0.655 um", "band B4: centre_nm: '0.655 um' is not a positive number"),
        ("centre_nm: 655|centre_nm: 55465763", "is a radar's"),
        ("width_nm: 30|width_nm: 3000", "reaches below 0 nm"),
        ("width_nm: 30|radar_band: C", "radar_band: belongs to kind sar, this band's kind is optical"),
        ("kind: variable|kind: sar", "band share_without_power: radar_band: None"),
        ("kind: variable, units|kind: sar, radar_band: C, polarisation: VX, units", "polarisation: 'VX'"),
        (", std: 0.11|", "band share_without_power: std: is missing"),
        ("std: 0.11|std: 0", "std: 0 is not a positive number"),
        ("outages-red|Outages.Red", "stem: 'Outages.Red'"),
        ("also: \\[red\\]|also: red", "must be a list"),
        ("also: \\[red\\]|also: [SHARE_without_power]", "is band share_without_power already"),
        ("  B4:|  on:", "a name was read as True: put it in quotes"),
        ('units: "1"|vector: words', "vector: give a list of numbers"),
        ("bands:|bands: {}\nx:", "unknown key 'x'"),
        ("name: outages|name: [", "is not YAML"),
        ("centre_nm: \\d+|centre_nm: 0.665", "0.665 is too short for light: give it in nm"),
        ("bands:|bands:\n  share_without_power: {kind: variable}", "'share_without_power' is there twice"),
        ('units: "1"|vector: [0, 0]', "vector: needs one axis of finite numbers, not all 0"),
        ('units: "1"|vector: no.npy', "no.npy cannot be read (No such file or directory)"),
    ],
)
def test_mistakes_in_a_descriptor_are_named(tmp_path, change, message):
    old, new = change.split("|")
    path = tmp_path / "outages.yaml"
    path.write_text(re.sub(old, new, OUTAGES, count=1))
    assert path.read_text() != OUTAGES
    with pytest.raises(UserError) as caught:
        find_sensor(path)
    assert message in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_vectors_come_from_lists_and_files(tmp_path):
    np.savez(tmp_path / "words.npz", outage=np.array([3.0, 4.0]))
    path = tmp_path / "own.yaml"
    path.write_text("bands: {a: {kind: variable, vector: [3, 4]}, b: {kind: variable, vector: 'words.npz:outage'}}")
    bands = find_sensor(path).bands
    for band in bands.values():
        assert np.allclose(vector_of(band), np.array([0.6, 0.8]) * 2**0.5)  # mean square 1
        assert Band.from_dict(json.loads(json.dumps(band.as_dict()))) == band
    path.write_text("bands: {a: {kind: variable, vector: 'words.npz:outages'}}")
    with pytest.raises(UserError, match="did you mean outage"):
        find_sensor(path)


def test_a_resolved_config_holds_the_vectors_and_needs_no_file(tmp_path):
    given = np.random.default_rng(0).normal(size=700).astype(np.float32)
    np.save(tmp_path / "word.npy", given)
    path = tmp_path / "own.yaml"
    path.write_text("bands: {a: {kind: variable, vector: word.npy}}")
    band = find_sensor(path).bands["a"]
    stored = yaml.safe_dump(band.as_dict())
    (tmp_path / "word.npy").unlink()
    assert len(stored) < 5 * 700 * 4 and (np.asarray(band.vector, np.float32) == given).all()
    again = Band.from_dict(yaml.safe_load(stored))
    assert again == band and (vector_of(again) == vector_of(band)).all()
    with pytest.raises(UserError, match="band a: vector: is damaged"):
        Band.from_dict({"name": "a", "kind": "variable", "stem": "a", "vector": "float32:2:AAAA"})


def test_a_trained_model_does_not_need_its_descriptor(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("bands: {rain: {kind: variable, vector: [1, 2]}, snow: {kind: variable, stem: rain}}")
    values = np.zeros((4, 2, 8, 8), np.float32)
    shards = write_set(
        tmp_path / "set", {"x": (values, "CHW")}, statistics={"x": {"mean": [0.0] * 2, "std": [1.0] * 2}}
    )
    describe(shards, x=[{"name": "rain"}, {"name": "SNOW"}])
    model = {"family": "gpna", "preset": "gpna_debug", "masked": {}}
    sources = {"sky": {"shards": str(shards), "inputs": {"x": {"sensor": str(path)}}}}
    config = {"run": {"dir": str(tmp_path / "run")}, "model": model, "data": {"sources": sources}}
    config = resolve(validate(config | {"train": {"steps": 1, "global_batch": 4}}), 1).config.as_dict()
    with_file = open_split(config, "sky", "train", wanted=())
    path.unlink()
    assert open_split(config, "sky", "train", wanted=()).inputs == with_file.inputs
    describe(shards, x=[{"name": "rain"}, {"name": "hail"}])
    with pytest.raises(UserError, match="band hail is not in .*own.yaml"):
        open_split(config, "sky", "train", wanted=())


def test_wavelengths_of_a_manifest_in_micrometres_are_refused():
    entry = {"bands": [{"name": "red", "centre_nm": 0.665, "width_nm": 0.03}]}
    with pytest.raises(UserError, match="data.x: band red: 0.665 nm in the manifest is too short for light"):
        bands_of(entry, where="data.x")


def plain(count):
    return [StoredBand(f"v{place}x") for place in range(count)]


STATISTICS = {"mean": [0.0] * 20, "std": [1.0] * 20}


def spec_of(axes, side, bands, steps=1, crop=None):
    described = entry(plain(bands), axes, side, steps)
    described["statistics"] = {key: values[:bands] for key, values in STATISTICS.items()}
    return input_spec(described, crop=crop)


@pytest.mark.parametrize(
    ("axes", "side", "bands", "steps", "crop", "footprint", "tokens"),
    [
        ("CHW", 255, 8, 1, 224, 8, 6272),  # the survey images, cut as upstream does
        ("CHW", 255, 8, 1, None, 8, 32 * 32 * 8),  # and whole
        ("TCHW", 255, 8, 2, 224, 8, 12544),  # two years of them
        ("CHW", 64, 13, 1, None, 8, 832),  # brick kilns
        ("CHW", 100, 4, 1, None, 8, 676),  # aerial land cover
        ("CHW", 224, 3, 1, None, 8, 2352),  # fields
        ("TCK", 32, 9, 32, None, 8, 1152),  # histograms of crop yield, as a series
        ("CHW", 32, 9, 1, None, 8, 144),  # and as pictures
        ("CHW", 31, 1, 1, None, 4, 64),
        ("CHW", 15, 1, 1, None, 2, 64),
        ("CHW", 7, 1, 1, None, 1, 49),
        ("TC", 1, 17, 24, None, 1, 408),
        ("C", 1, 5, 1, None, 1, 5),
    ],
)
def test_token_counts(axes, side, bands, steps, crop, footprint, tokens):
    spec = spec_of(axes, side, bands, steps, crop)
    assert (spec.footprint, spec.tokens) == (footprint, tokens) and np.prod(spec.grid) == tokens
    assert spec.patch_values == {"H": footprint**2, "K": footprint}.get(axes[-2] if axes[-1] == "W" else axes[-1], 1)


def test_specs_survive_json():
    spec = input_spec(
        entry([*S2_BANDS, *S1_BANDS], side=24) | {"statistics": {"mean": [1] * 14, "std": [2] * 13 + [0]}}
    )
    assert spec.std[-1] == 1.0  # a constant band is not divided by 0
    assert InputSpec.from_dict(json.loads(json.dumps(spec.as_dict()))) == spec
    with pytest.raises(UserError, match="unknown key 'footprnt': did you mean footprint"):
        InputSpec.from_dict(spec.as_dict() | {"footprnt": 8})


def test_specs_that_cannot_be():
    described = entry(plain(2))
    with pytest.raises(UserError, match="wind: band v0x: no mean and std"):
        input_spec(described, where="wind")
    described["statistics"] = {"mean": [0, 0], "std": [1, 1]}
    for crop in (0, 65):
        with pytest.raises(UserError, match=f"crop {crop} of shape"):
            input_spec(described, crop=crop)
    with pytest.raises(UserError, match="footprint 16"):
        input_spec(described, footprint=16)
    bands = bands_of(described)
    for axes, shape in (
        ("HW", (8, 8)),
        ("CH", (2, 8)),
        ("CHWK", (2, 8, 8, 8)),
        ("CHW", (3, 8, 8)),
        ("CX", (2, 8)),
        ("CHW", (2, 8)),
    ):
        with pytest.raises(UserError, match=axes):
            InputSpec(axes, shape, bands, None, 1)


def test_the_example_of_the_documentation_runs(tmp_path, capsys, monkeypatch):
    """From arrays to the plan of a run, by what the page says alone."""
    text = (Path(__file__).parents[2] / "docs" / "gpna_modalities.md").read_text()
    descriptor, config = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[:2]
    monkeypatch.chdir(tmp_path)
    Path("outages.yaml").write_text(descriptor)
    Path("run.yaml").write_text(f"run: {{dir: run}}\n{config}")
    np.save("outages.npy", np.random.default_rng(0).random((96, 64, 64, 2), np.float32))
    np.save("labels.npy", np.arange(96) % 2)
    command = re.search(r"^    frontier (shards write .*)$", text, re.MULTILINE)[1]
    assert frontier(command.split()) == 0 and frontier(["pretrain", "run.yaml", "--dry-run"]) == 0
    assert "footprint: 8" in capsys.readouterr().out
    manifest = json.loads(Path("shards/outages/manifest.json").read_text())
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    exec(code, {"manifest": manifest})
    assert capsys.readouterr().out == "(1, 8, 8, 2) 128\n"


def test_default_stems_cover_every_wavelength():
    found = [
        default_stem(Band("x", "optical", "", nm, 10.0))
        for nm in (350, 443, 492, 560, 600, 665, 705, 740, 783, 865, 945)
    ]
    assert len(set(found)) == len(found)
    assert default_stem(Band("x", "optical", "", 13300.0, 500.0)) == "optical_lwir12"
