"""Metadata of the suite. `profiling/` and `jobs/` are renamed on install: Python 3.15 ships a standard `profiling` package."""

from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = next(
    line.split('"')[1]
    for line in (here / "frontier" / "__init__.py").read_text().splitlines()
    if line.startswith("__version__")
)

renamed = {"frontier_profiling": "profiling", "frontier_jobs": "jobs"}
packages = find_packages(
    include=["frontier", "frontier.*", "data_prep", "data_prep.*", "gpna", "gpna.*", "scale_alibi", "scale_alibi.*"]
)
packages += list(renamed)
# profiling/ has no __init__.py, so its folders are listed by hand rather than found.
packages += [
    "frontier_profiling." + ".".join(p.relative_to(here / "profiling").parts)
    for p in sorted((here / "profiling").rglob("*"))
    if p.is_dir() and any(p.glob("*.py"))
]

extras = {
    "mpi": ["mpi4py>=4.0"],
    "deepspeed": ["deepspeed>=0.19.8"],
    "export": ["safetensors>=0.4"],
    "geo": ["rasterio>=1.4", "pyproj>=3.6"],
    "energy": ["nvidia-ml-py>=12"],  # AMD: the amdsmi of the installed ROCm
    "hdf5": ["hdf5plugin>=5.0"],
    "baselines": ["monai>=1.4"],  # the U-Net that segmentation is compared with
    "probe": ["umap-learn>=0.5.6"],  # the method umap_kmeans of frontier probe
    "test": [
        "pytest>=8",
        "pytest-xdist>=3.6",
        "ruff>=0.6",
        "mypy>=1.11",
        "types-PyYAML",
        "transformers>=5.0",
        "safetensors>=0.4",
    ],
}

setup(
    name="frontier-geofm",
    version=version,
    description="HPC-first pretraining of geospatial foundation models",
    long_description=(here / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=packages,
    package_dir=renamed,
    package_data={
        "frontier": ["probe/published.yaml", "models/cpu/kernels.cpp"],
        "gpna": ["descriptors/*.yaml"],
        "frontier_jobs": [
            "*.sh",
            "*.env",
            "configs/*.yaml",
            "configs/gpna_sustainbench/*.yaml",
            "sites/*.yaml",
            "sites/*.sh",
            "templates/*",
        ],
        "frontier_profiling": [
            *("report/*.j2", "report/*.css", "report/study/*.j2", "report/study/*.css", "report/study/*.js"),
            *("predict/*.yaml", "systems/*.yaml", "studies/*.yaml"),
        ],
    },
    install_requires=[
        "torch>=2.10",
        "numpy>=1.26",
        "h5py>=3.10",
        "pyyaml>=6.0",
        "pydantic>=2.6",
        "psutil>=5.9",
        "scikit-learn>=1.4",
        "sympy>=1.12",
        "rich>=13",
        "matplotlib>=3.8",
        "jinja2>=3.1",
        "pillow>=10",
    ],
    extras_require=extras,
    entry_points={"console_scripts": ["frontier=frontier.__main__:run"]},
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: GIS",
    ],
)
