"""`dpeer verify`: what of a bundle follows from the rest of it, and what nobody can tell from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from dpeer.errors import DpeerError
from dpeer.launcher.bundle.check import Check, Place
from dpeer.launcher.bundle.container import Index, Refused, entry, files_below, opened, read_index
from dpeer.launcher.bundle.pack import RECORDS, WORDED_BY, versions
from dpeer.scratch import scratch

OWN = frozenset({"bundle.json"})


def verify(path: Path, published: str | None = None, parts: Sequence[str] = ()) -> Iterator[Check]:
    """All checks of a bundle, in order, or those of some parts. DpeerError: it is no bundle, holds what none ever
    holds, or has no such part.

    Nothing in it is executed or unpickled. What cannot be read as what it claims to be differs.
    """
    with opened(path) as folder, scratch("dpeer-verify-") as place:
        try:
            index, digest = read_index(folder)
        except Refused as refused:
            raise DpeerError(f"{path}: {refused}. Get it anew from whoever published it.") from None
        yield _published(digest, published)
        yield from _files(folder, index)
        checks = _parts(folder, index, place)
        if unknown := [part for part in parts if part not in checks]:
            raise DpeerError(f"{path}: has no part {unknown[0]}; there are {', '.join(checks)}")
        for part, check in checks.items():
            if not parts or part in parts:
                yield from guarded(part, check)


def _published(digest: str, published: str | None) -> Check:
    if published is None:
        says = f"digest {digest}: compare it with the published one, if there is one (--digest)"
        return Check("bundle.json", "not verified", says)
    if digest == published.strip().lower():
        return Check("bundle.json", "verified", f"digest {digest} is the published one")
    return Check("bundle.json", "differs", f"its digest is {digest}, and {published} was published")


def _files(folder: Path, index: Index) -> Iterator[Check]:
    there = set(files_below(folder)) - OWN
    wrong = [f"{name} is missing" for name in sorted(index.files.keys() - there)]
    wrong += [f"{name} is not listed" for name in sorted(there - index.files.keys())]
    for name in sorted(there & index.files.keys()):
        if entry(folder / name) != index.files[name]:
            wrong.append(f"{name} does not match its hash")
    wrong += [f"{name} belongs to no part of a bundle" for name in sorted(there) if not _known(name, index)]
    yield from (Check("files", "differs", says) for says in wrong)
    if not wrong:
        yield Check("files", "verified", f"{len(there)} files match their hashes in bundle.json")


def _known(name: str, index: Index) -> bool:
    kind, _, rest = name.partition("/")
    part, _, file = rest.partition("/")
    match kind:
        case "runs":
            return part in index.runs and file in (*RECORDS, "report.html", "recipe.yaml", "export/checksums.json")
        case "evaluations":
            return part in index.evaluations and (file == "ratings.parquet" or file.startswith("responses/"))
        case "fits":
            plain = file in ("manifest.json", "draws.npz", "report.html", "report.json")
            return part in index.fits and (plain or file.startswith(("tables/", "figures/")))
        case "data":
            return any(name in source.files for source in index.data.get(part, ()))
    return False


def _parts(folder: Path, index: Index, place: Path) -> dict[str, Callable[[], Iterator[Check]]]:
    """What looks at each part, by its name."""
    from dpeer.launcher.bundle.verify_fit import check_evaluation, check_fit
    from dpeer.launcher.bundle.verify_run import check_data, check_run

    here = versions()
    same = index.versions == here
    same_words = all(index.versions.get(name) == here[name] for name in WORDED_BY)

    def there(part: str) -> Place:
        return Place(part, folder / part, place / part, same, same_words)

    found: dict[str, Callable[[], Iterator[Check]]] = {}
    if not same:
        found["versions"] = partial(_versions, index)
    for name in index.runs:
        found[f"runs/{name}"] = partial(check_run, there(f"runs/{name}"))
    for name in index.evaluations:
        found[f"evaluations/{name}"] = partial(check_evaluation, there(f"evaluations/{name}"))
    for name, of in index.fits.items():
        table = folder / "evaluations" / of / "ratings.parquet" if of else None
        found[f"fits/{name}"] = partial(check_fit, there(f"fits/{name}"), table)
    for name, sources in index.data.items():
        found[f"data/{name}"] = partial(check_data, f"data/{name}", folder / "runs" / name, sources)
    return found


def _versions(index: Index) -> Iterator[Check]:
    here = versions()
    named = ", ".join(f"{k} {index.versions.get(k)} (here {v})" for k, v in here.items() if index.versions.get(k) != v)
    what = "pictures" if all(index.versions.get(name) == here[name] for name in WORDED_BY) else "words and pictures"
    yield Check("versions", "not verified", f"pages were written with {named}; {what} may differ by that")


def guarded(part: str, check: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """The checks; whatever a file raises that is not what it claims to be is one that fails."""
    try:
        yield from check()
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:300]
        yield Check(part, "differs", f"cannot be read as what it claims to be ({type(error).__name__}: {reason})")
