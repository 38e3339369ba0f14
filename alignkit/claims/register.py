"""The claims themselves: `data/claims.yaml`, read and checked. Mistakes are named before anything runs."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass, fields
from pathlib import Path

from alignkit.claims import statistics
from alignkit.errors import DataError
from alignkit.files import DATA
from alignkit.taxonomy import Phase

ARXIV_ID = re.compile(r"\d{4}\.\d{4,5}")


@dataclass(frozen=True)
class Claim:
    """One entry of `claims.yaml`. `source`: arXiv ids or citations; `measure`: what number is recorded."""

    id: str
    notebook: str
    phase: str
    dimension: str
    statement: str
    source: tuple[str, ...]
    kind: str
    measure: str
    rule: statistics.Rule
    could_fail_because: str

    @property
    def rule_hash(self) -> str:
        """Of all that must be written down before the evidence: statement, measure, source, kind and rule."""
        told = [self.statement, self.measure, self.source, self.kind, self.rule.key, self.rule.low, self.rule.high]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


FIELDS = tuple(field.name for field in fields(Claim))


def load(path: str | Path | None = None) -> dict[str, Claim]:
    """All registered claims by id. Raises DataError naming the claim and what is wrong with it."""
    import yaml

    from alignkit import catalog

    path = Path(path or os.environ.get("ALIGNKIT_CLAIMS") or DATA / "claims.yaml")
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8")) or []
    except OSError as error:
        raise DataError(f"can't read the claims {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise DataError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(entries, list):
        raise DataError(f"{path}: expected a list of claims, each starting with '- id:'")
    known, claims = set(catalog.load()["arxiv_id"]), {}
    for number, entry in enumerate(entries, 1):
        claim = _parse(entry, f"{path.name}, entry {number}")
        if claim.id in claims:
            raise DataError(f"{path.name}: claim {claim.id!r} is there twice; rename one of them")
        missing = [source for source in claim.source if ARXIV_ID.fullmatch(source) and source not in known]
        if missing:
            raise DataError(f"{path.name} ({claim.id}): source {missing[0]} is not in data/catalog.csv; add it there")
        claims[claim.id] = claim
    return claims


def _parse(entry: object, where: str) -> Claim:
    if not isinstance(entry, dict):
        raise DataError(f"{where}: expected a mapping with {', '.join(FIELDS)}; found {entry!r}")
    if entry.get("id"):
        where = f"{where} ({entry['id']})"
    missing = [field for field in FIELDS if entry.get(field) in (None, "", [], {})]
    unknown = [str(field) for field in entry if field not in FIELDS]
    if missing or unknown:
        found = f"missing {', '.join(missing) or 'nothing'}; unknown {', '.join(unknown) or 'nothing'}"
        raise DataError(f"{where}: fields {found}. A claim has {', '.join(FIELDS)}")
    for field, words in (("kind", statistics.KINDS), ("phase", list(Phase))):
        if entry[field] not in words:
            raise DataError(f"{where}: {field} is {entry[field]!r}; it must be one of {', '.join(words)}")
    sources = entry["source"] if isinstance(entry["source"], list) else [entry["source"]]
    if not all(isinstance(source, str) for source in sources):
        raise DataError(f"{where}: source is {entry['source']!r}; quote arXiv ids, YAML reads them as numbers")
    text = {name: str(entry[name]).strip() for name in FIELDS if name not in ("source", "rule")}
    rule = statistics.Rule.parse(entry["rule"], entry["kind"], where)
    return Claim(**text, source=tuple(sources), rule=rule)


def of_notebook(notebook: str) -> dict[str, Claim]:
    """The claims registered for one notebook (its stem), by id."""
    return {claim.id: claim for claim in load().values() if claim.notebook == notebook}
