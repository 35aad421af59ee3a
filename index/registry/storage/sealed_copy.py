"""A bundle about to be published: its own files, and a manifest that also says how it was judged."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.contracts.manifest import MANIFEST_FILE, Manifest, fingerprint_of, read_manifest, write_durably
from pipelines.drafts import draft_of


@contextlib.contextmanager
def sealed_copy(bundle: Path, facts: dict[str, Any]) -> Iterator[Path]:
    """A view of the bundle whose manifest has more facts; the bundle itself stays as it is.

    The files are links to the bundle's own: only the manifest is written. What the fingerprint names (inputs,
    configuration, files) is unchanged. Each publisher has its own copy, also of the same bundle at the same time.
    """
    manifest = read_manifest(bundle)
    fields = manifest.model_dump()
    fields["facts"] = json.loads(json.dumps({**manifest.facts, **facts}, default=str))
    del fields["seal"]
    sealed = Manifest.model_validate({**fields, "seal": fingerprint_of(fields)})
    with draft_of(bundle.with_name(f"{bundle.name}.publish")) as folder:
        staged = folder / "bundle"
        shutil.copytree(bundle, staged, copy_function=_link)
        (staged / MANIFEST_FILE).unlink()
        write_durably(staged / MANIFEST_FILE, sealed.model_dump_json(indent=2).encode())
        yield staged


def _link(source: str, target: str) -> None:
    try:
        Path(target).hardlink_to(source)
    except OSError:
        shutil.copy2(source, target)
