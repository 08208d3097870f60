"""
The finished runs of a study in docs/reproduction.md as one small file, from which everybody can go on.

    python scripts/finished_runs.py pack agreement      # logs/sweeps/agreement into docs/data/studies/agreement.tar.xz
    python scripts/finished_runs.py unpack agreement    # the way back

What is kept of a run are its settings, returns, measurements and log, not the agent. Unpacked, ``sb3-sparse report`` makes the
page with all plots of it, and ``sb3-sparse sweep`` makes only the runs that are missing.
"""

import argparse
import io
import lzma
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

from sb3_sparse.common.files import written_beside
from sb3_sparse.sweeps.runs.run_folder import RunFolder

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "docs" / "data" / "studies"
STUDIES = ROOT / "logs" / "sweeps"
# Of an agent, of its replay buffer, and of what belongs to one machine.
LEFT_OUT = {".zip", ".pkl", ".lock"}


def finished(study: Path) -> list[Path]:
    """The folders of the runs of a study that are done."""
    return [folder for folder in sorted((study / "runs").glob("*")) if RunFolder(folder).is_done]


def pack(study: Path, archive: Path) -> int:
    """
    Write the finished runs of a study into one file, the same bytes for the same runs.

    :param study: Folder of the study.
    :param archive: The file, ``.tar.xz``.
    :return: How many runs there are.
    :raises ValueError: If none has finished, or there is no plan, without which none of it can be unpacked.
    """
    if not (study / "plan.yml").is_file():
        raise ValueError(f"{study} has no plan.yml: expected the folder of a study.")
    if not (runs := finished(study)):
        raise ValueError(f"{study} has no finished run.")
    files = [study / "plan.yml", *(path for run in runs for path in sorted(run.rglob("*")))]
    with written_beside(archive) as beside, tarfile.open(beside, "w:xz") as tar:
        for path in files:
            if path.is_file() and path.suffix not in LEFT_OUT and not path.name.startswith("events.out."):
                content = path.read_bytes()
                entry = tarfile.TarInfo(str(path.relative_to(study)))
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return len(runs)


def unpack(archive: Path, study: Path) -> int:
    """
    The way back. Runs that have begun there stay as they are.

    :param archive: The file.
    :param study: Folder of the study; it need not be there.
    :return: How many runs came.
    :raises ValueError: If there is no such file, or no plan in it; the folder is as before then.
    """
    if not archive.is_file():
        raise ValueError(f"there is no {archive}: expected what `pack` has written.")
    try:
        with tarfile.open(archive) as tar:
            has_plan = "plan.yml" in tar.getnames()
    except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise ValueError(f"{archive} cannot be read ({error}): expected what `pack` has written.") from error
    if not has_plan:
        raise ValueError(f"{archive} has no plan.yml: expected what `pack` has written.")
    study.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=study) as beside, tarfile.open(archive) as tar:
        tar.extractall(beside, filter="data")
        (study / "runs").mkdir(exist_ok=True)
        places = {run: study / "runs" / run.name for run in finished(Path(beside))}
        new = {run: place for run, place in places.items() if RunFolder(place).state() == "waiting"}
        for run, place in new.items():
            if place.exists():
                shutil.rmtree(place)
            run.rename(place)
        if not (study / "plan.yml").exists():
            shutil.copy(Path(beside) / "plan.yml", study / "plan.yml")
    return len(new)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=["pack", "unpack"])
    parser.add_argument("study", nargs="+")
    parser.add_argument("--folder", type=Path, default=STUDIES, help="of studies (default: logs/sweeps)")
    options = parser.parse_args()
    for name in options.study:
        study, archive = options.folder / name, KEPT / f"{name}.tar.xz"
        try:
            runs = pack(study, archive) if options.do == "pack" else unpack(archive, study)
        except ValueError as error:
            sys.exit(f"{options.do} {name}: {error}")
        print(f"{name}: {runs} runs {options.do}ed, {archive.stat().st_size / 1024:.0f} kB")


if __name__ == "__main__":
    main()
