"""A library is put into a store, and what lacks a vector is embedded, once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select

from letta_gym import cli
from letta_gym.library.vectors import EmbedderIdentity, Float, snap, text_hash
from letta_gym.store.models import VersionRow
from letta_gym.store.stock import LIBRARY, embed, seed
from letta_gym.store.store import Store
from tests.stores import new_database, skill

SKILLS = (skill("a", "one"), skill("b", "two"), skill("c", "three"))


class Embedder:
    """Gives each text a vector of its own, and counts the texts."""

    def __init__(self, name: str = "test") -> None:
        self.identity, self.texts = EmbedderIdentity(name, "0" * 64, 8), 0

    def encode(self, texts: Sequence[str]) -> Float:
        self.texts += len(texts)
        seeds = [int(text_hash(text)[:8], 16) for text in texts]
        return snap(np.stack([np.random.default_rng(s).standard_normal(8) for s in seeds]))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with new_database(tmp_path) as url, Store(url) as opened:
        yield opened


def vectors(store: Store) -> dict[str, str | None]:
    """Name of the embedder of each version, by the version's body."""
    with store.database.read(None) as session:
        rows = session.scalars(select(VersionRow).order_by(VersionRow.id)).all()
    assert all((row.vector is None) == (row.embedder is None) for row in rows)
    return {row.body: row.embedder for row in rows}


def test_a_library_is_offered_to_everybody_and_again_only_where_it_changed(store: Store) -> None:
    assert seed(store, SKILLS, actor="test") == 3
    stranger = store.agents.ensure("stranger")
    seen = store.offers.seen_by(stranger)
    assert {i: (o.owner, o.scope) for i, o in seen.items()} == dict.fromkeys(
        ("a", "b", "c"), (LIBRARY, "shared")
    )
    written = len(store.policies.audit())
    assert seed(store, SKILLS, actor="test") == 0
    assert len(store.policies.audit()) == written
    assert seed(store, (*SKILLS[:2], skill("c", "changed")), actor="test") == 1
    assert store.offers.seen_by(stranger)["c"].skill.body == "changed"


def test_what_lacks_a_vector_is_embedded_once(store: Store) -> None:
    embedder = Embedder()
    assert embed(store, embedder, actor="test") == 0
    seed(store, SKILLS, actor="test")
    assert embed(store, embedder, actor="test") == 3
    said = embedder.texts
    assert embed(store, embedder, actor="test") == 0
    assert embedder.texts == said
    seed(store, (skill("c", "changed"),), actor="test")
    assert embed(store, embedder, actor="test") == 1
    assert set(vectors(store).values()) == {embedder.identity.key}


def test_another_embedder_makes_its_own(store: Store) -> None:
    seed(store, SKILLS, actor="test")
    embed(store, Embedder(), actor="test")
    other = Embedder("other")
    assert embed(store, other, actor="test") == 3
    assert set(vectors(store).values()) == {other.identity.key}


def test_the_command_seeds_the_bundled_library(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "store.sqlite"
    for new in (48, 0):
        assert cli.main(["data", "seed", "--store", str(path)]) == 0
        assert f"{new} of 48 skills" in capsys.readouterr().out


def test_the_command_embeds_for_the_service_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("letta_gym.library.embeddings.default_embedder", Embedder)
    folder = tmp_path / "skills" / "mend"
    folder.mkdir(parents=True)
    (folder / "SKILL.md").write_text("---\nname: mend\ndescription: Mends things.\n---\nSew.\n")
    store, cache = str(tmp_path / "store.sqlite"), tmp_path / "vectors.sqlite"
    assert cli.main(["data", "seed", "--store", store, "--skills", str(folder.parent)]) == 0
    for number in (1, 0):
        assert cli.main(["data", "embed", "--store", store, "--cache", str(cache)]) == 0
        assert f"{number} skills were embedded" in capsys.readouterr().out
    assert cache.is_file()
