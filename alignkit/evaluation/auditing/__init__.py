"""Side-effect screening of a reward before anything is optimized with it.

Names are imported when first used: the reward's own process needs few of them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"report": ["Audit", "audit", "example_lines"]}
)
