"""vlsi: distil a large vision language model into a small one, layer by layer, through words.

An implementation of VLsI (arXiv 2412.01822). The command is ``vlsi``; the library rooms are described in
``docs/``. Importing this package imports neither torch nor transformers.
"""

from __future__ import annotations

__version__ = "0.1.0"
