"""What there is to decode: the clips of a dataset, or the latent files of a folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from temporal_vae.autoencoders.base import Autoencoder
from temporal_vae.distributed.dataset.decode_job import DecodeTask
from temporal_vae.distributed.dataset.decoder import at_hand
from temporal_vae.distributed.dataset.index import INDEX, read_index
from temporal_vae.distributed.dataset.places import Place
from temporal_vae.distributed.dataset.summary import DATASET
from temporal_vae.errors import LatentFileError, MediaError, MemoryLimitError, TemporalVaeError, one_line
from temporal_vae.video.latents import LatentReader, ModelIdentity

_DIGITS = 32


@dataclass(frozen=True, kw_only=True)
class Latents:
    """What there is to decode.

    Attributes:
        table: of pyarrow: a row for each row of the source; `identity` says of which latents.
        tasks: by identity.
        broken: files that are no latents, and why.
    """

    table: Any
    tasks: dict[str, DecodeTask]
    broken: dict[str, str] = field(default_factory=dict)


def latents_of(place: Place, settings: str | None, vae: Autoencoder) -> Latents:
    """All latents of a folder.

    Args:
        place: the folder.
        settings: of a dataset that was encoded with several, see `read_index`.
        vae: to decode with.

    Raises:
        LatentFileError: no latents, a dataset that is not finished, or one that another model made.
    """
    if place.exists(INDEX):
        return _dataset(place, settings, vae)
    if place.exists(DATASET):
        raise LatentFileError(
            f"{place.url}: is a dataset that is not finished; run encode-dataset to its end"
        )
    return _latent_files(place)


def _dataset(place: Place, settings: str | None, vae: Autoencoder) -> Latents:
    """The clips of a dataset."""
    import pyarrow as pa

    index = read_index(place, settings)
    _check_model(place, set(index["settings"].unique().to_pylist()), vae)
    where = index.select(["identity", "path", "shard", "format", "offset", "length"])
    tasks: dict[str, DecodeTask] = {}
    for identity, path, shard, format, *at in zip(*where.to_pydict().values(), strict=True):
        tasks.setdefault(
            identity, DecodeTask(identity=identity, path=path, shard=shard, format=format, at=tuple(at))
        )
    sizes = [bucket.split("x") for bucket in index["bucket"].to_pylist()]
    for number, name in enumerate(("width", "height")):
        values = pa.array([int(size[number]) for size in sizes], pa.int64())
        index = index.set_column(index.column_names.index(name), name, values)
    table = index.drop_columns(["shard", "format", "offset", "length", "shape", "bucket", "settings"])
    return Latents(table=table, tasks=tasks)


def _check_model(place: Place, settings: set[str], vae: Autoencoder) -> None:
    """Refuse a dataset that another model made, as far as the folder tells."""
    if not place.exists(DATASET):
        return
    model = ModelIdentity.of(vae)
    try:
        entries: Mapping[str, Any] = json.loads(place.read(DATASET))["settings"]
        keys = ("name", "config", "encoder_probe")
        makers = [
            ModelIdentity(**{key: entries[each]["model"][key] for key in keys})
            for each in settings & set(entries)
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LatentFileError(f"{place.shown(DATASET)}: damaged ({one_line(error)})") from error
    for maker in makers:
        if not model.made_by(maker):
            raise LatentFileError(
                f"{place.url}: made by model {maker.name!r} (config {maker.config_sha256[:8]}), not by {model.name!r} "
                f"(config {model.config_sha256[:8]}); decode with the model that encoded"
            )


def _latent_files(place: Place) -> Latents:
    """The latent files of a folder."""
    import pyarrow as pa

    names = [name for name in place.list() if name.endswith(".safetensors")]
    if not names:
        raise LatentFileError(
            f"{place.url}: holds neither a dataset of encode-dataset (there is no {INDEX}) nor latent files"
        )
    tasks: dict[str, DecodeTask] = {}
    rows: list[dict[str, Any]] = []
    broken: dict[str, str] = {}
    for name in names:
        try:
            with at_hand(place, name) as path:
                identity, row = _described(path)
        except MemoryLimitError:  # no room for it here, which says nothing about the file
            raise
        except (TemporalVaeError, OSError) as error:
            broken[name] = one_line(error) if isinstance(error, MediaError) else f"{name}: {one_line(error)}"
            continue
        tasks.setdefault(identity, DecodeTask(identity=identity, path=name, shard=name))
        rows.append({"identity": identity, "path": name, **row})
    table = pa.Table.from_pylist(rows) if rows else pa.table({"identity": pa.array([], pa.string())})
    return Latents(table=table, tasks=tasks, broken=broken)


def _described(path: Path) -> tuple[str, dict[str, Any]]:
    """Identity of a latent file, and what an index says of it."""
    with LatentReader(path) as reader:
        info = reader.info
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    end = info.timestamps[-1] + (info.last_duration or 1 / info.rate)
    return digest.hexdigest()[:_DIGITS], {
        "start": float(info.timestamps[0]),
        "end": float(end),
        "frames": len(info.timestamps),
        "width": info.width,
        "height": info.height,
        "fps": str(info.rate),
        "source": info.source_name,
    }
