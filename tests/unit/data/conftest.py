from __future__ import annotations

import hypothesis

# A busy machine is no defect: no example fails for being slow.
hypothesis.settings.register_profile("memfit-data", deadline=None)
hypothesis.settings.load_profile("memfit-data")
