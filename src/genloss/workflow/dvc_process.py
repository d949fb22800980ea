"""DVC in a process that ends with the one that has started it: a commit that hangs would keep its lock for good.

python -m genloss.workflow.dvc_process commit --force         # as `dvc commit --force`
"""

from __future__ import annotations

import os
import sys

from genloss.core.machine import end_with

if __name__ == "__main__":
    end_with(os.getppid())
    from dvc.cli import main

    sys.exit(main(sys.argv[1:]))
