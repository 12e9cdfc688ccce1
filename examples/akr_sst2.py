# SPDX-License-Identifier: Apache-2.0
"""AKR on SST-2, as in its paper: average of checkpoints, pruning at 30, 50 and 87.5 %, TextFooler, report.

With a network, from a fine-tuned BERT-base of the hub; without one, from checkpoints and files that are here. The
attack needs TextAttack (pyprune attack --install-line) and resources (docs/attacks.md).

    python examples/akr_sst2.py --download
    python examples/akr_sst2.py --models run-1 run-2 run-3 --select held-out.tsv --train train.tsv --test dev.tsv \
        --resources DIR --methods akr sparsegpt magnitude
    python examples/akr_sst2.py --quick --recipe deepwordbug --resources DIR
    python examples/akr_sst2.py --plan

The same command goes on after a break. It leaves models, attacks, report.html and table.md in --output.
"""

from __future__ import annotations

import sys

from akr.paper import SST2
from akr.protocol import main

if __name__ == "__main__":
    sys.exit(main(SST2, __doc__))
