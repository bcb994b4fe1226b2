"""A small prepared cohort and a tiny network, shared by the tests of whole runs."""

import pytest

from evenhand.config import compose
from evenhand.data.sources.csv import prepare_csv
from evenhand.data.synthetic import SyntheticConfig, make_cohort, write_cohort
from tests.models import faulty_server as faulty

TINY = [
    "model=test_vit", "model.input_size=[32,32]", "model.precision=fp32", "trainer.accelerator=cpu", "trainer.progress=false",
    "audit.bootstrap=50", "audit.permutations=99",
]


@pytest.fixture(scope="session")
def cohort_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    write_cohort(make_cohort(SyntheticConfig(size=32, n_patients=160, signal=2.0, missing_age=0.05)), folder)
    return folder


@pytest.fixture(scope="session")
def prepared(cohort_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "cohort"
    prepare_csv(
        cohort_folder / "metadata.csv", out, images=cohort_folder, labels=["label"], attributes=["group", "age", "group*age"],
        bins={"age": [0, 60, 120]}, size=32,
    )
    return out


@pytest.fixture
def config(prepared):
    """Overrides of `evenhand train` -> TrainConfig on the small cohort."""
    return lambda *words: compose("train", [f"data={prepared}", *TINY, *words])


@pytest.fixture
def server():
    """An embedding server that takes as many images a request as the runs here send."""
    with faulty.serving() as running:
        running.max_batch = 64
        running.metadata = faulty.metadata(parameters={"max_batch": 64})
        yield running
