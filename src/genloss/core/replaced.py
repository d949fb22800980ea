"""Files of genloss that are replaced, by an upgrade say, while it runs: half of what it does then is the old code and
half the new, and it ends with an error that nobody can mend where it is raised.

    except Exception as error:
        raise replaced(error) or error
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from genloss.core.errors import UserError, one_line

BEGAN = time.time()  # of this process, as good as
HOME = Path(__file__).resolve().parents[1]


def replaced(error: Exception) -> UserError | None:
    """What to say in place of an error that came after code of genloss was replaced; None if none was."""
    for file in sorted(HOME.rglob("*.py")):
        about = file.stat()
        if max(about.st_mtime, about.st_ctime) > BEGAN:  # what is moved into place keeps the former
            return _told(file, "was written anew", error)
    for name, module in [*sys.modules.items()]:
        place = getattr(module, "__file__", None) if name.partition(".")[0] == "genloss" else None
        if place and not Path(place).is_file():
            return _told(place, "went away", error)
    return None


def _told(file: Path | str, what: str, error: Exception) -> UserError:
    why = f"{what} while this ran, which ended it ({type(error).__name__}: {one_line(error)})"
    return UserError(str(file), None, f"{why}; run the same command again: what is finished is kept")
