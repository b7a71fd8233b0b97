"""The truth beside a dataset: ``truth/market.safetensors`` (arrays) and ``truth/market.json`` (the rest).

No reader of datasets looks there, so a model cannot learn from it by accident.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from data.atomic import read_json, write_json
from data.errors import ConfigError, ContractError
from data.simulator import words
from data.simulator.campaigns import Campaign
from data.simulator.creators import Creators
from data.simulator.ledger import Ledger
from data.simulator.merchants import Merchants
from data.simulator.products import Products
from data.simulator.region import REGIONS
from data.simulator.settings import MarketSettings
from data.simulator.taste import Clusters
from data.simulator.users import Users
from data.simulator.videos import Videos
from data.simulator.world import World

#: Raised whenever a probability of the simulator changes meaning or value.
BEHAVIOUR_VERSION = 1
FOLDER = "truth"
_NOUNS: dict[str, Any] = {
    "clusters": Clusters, "creators": Creators, "merchants": Merchants, "products": Products,
    "videos": Videos, "users": Users,
}  # fmt: skip


def save_truth(dataset: Path, world: World, ledger: Ledger) -> None:
    """Write the truth of ``world`` and what happened in it under ``dataset``/truth."""
    folder = dataset / FOLDER
    folder.mkdir(exist_ok=True)
    arrays = {
        f"{noun}.{item.name}": np.ascontiguousarray(getattr(getattr(world, noun), item.name))
        for noun, kind in _NOUNS.items()
        for item in fields(kind)
    }
    arrays |= {f"ledger.{item.name}": getattr(ledger, item.name) for item in fields(ledger)}
    save_file(arrays, folder / "market.safetensors")
    campaigns = [asdict(item) | {"video": item.video.tolist()} for item in world.campaigns]
    write_json(
        folder / "market.json",
        {
            "behaviour_version": BEHAVIOUR_VERSION,
            "seed": world.seed,
            "settings": world.settings.values(),
            "campaigns": campaigns,
        },
    )
    public = [_campaign(world, item, ledger, row) for row, item in enumerate(world.campaigns)]
    write_json(folder / "campaigns.json", public)


def load_truth(dataset: Path) -> tuple[World, Ledger]:
    """Read what :func:`save_truth` wrote; raises :class:`ContractError` when it is not there or damaged."""
    folder = dataset / FOLDER
    if not folder.is_dir():
        raise ContractError(f"{folder}: no truth here; only datasets of shopreel simulate have one")
    document = read_json(folder / "market.json")
    version = document.get("behaviour_version") if isinstance(document, Mapping) else None
    if version != BEHAVIOUR_VERSION:
        raise ContractError(
            f"{folder}/market.json: behaviour_version {version}, this program has {BEHAVIOUR_VERSION}; "
            "simulate again"
        )
    path = folder / "market.safetensors"
    try:
        arrays = load_file(path)
        settings = MarketSettings(**document["settings"])
        nouns = {noun: _restore(kind, noun, arrays) for noun, kind in _NOUNS.items()}
        campaigns = [
            Campaign(**{**item, "video": np.array(item["video"], dtype=np.int64)})
            for item in document["campaigns"]
        ]
        world = World(settings=settings, seed=document["seed"], campaigns=campaigns, **nouns)
        ledger: Ledger = _restore(Ledger, "ledger", arrays)
    except (SafetensorError, OSError, KeyError, TypeError, ConfigError) as error:
        raise ContractError(
            f"{path}: damaged truth ({' '.join(str(error).split())}); simulate again"
        ) from None
    return world, ledger


def _restore(kind: Any, noun: str, arrays: Mapping[str, np.ndarray]) -> Any:
    return kind(**{item.name: arrays[f"{noun}.{item.name}"] for item in fields(kind)})


def _campaign(world: World, campaign: Campaign, ledger: Ledger, row: int) -> dict[str, Any]:
    """A campaign in public terms: ids and names instead of rows."""
    return {
        "campaign_id": campaign.campaign_id,
        "brand": words.brand(campaign.brand),
        "market": REGIONS[campaign.region].market,
        "first_day": campaign.first_day,
        "last_day": campaign.last_day,
        "budget_impressions": campaign.budget_impressions,
        "delivered_impressions": int(ledger.spent[row]),
        "video_ids": world.videos.id[campaign.video].tolist(),
    }
