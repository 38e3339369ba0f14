"""A reward, by name or in memory, that runs in a process of its own.

Names are imported when first used: that process needs few of them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "process": ["CantGoOn", "Incident", "IsolatedReward", "LoadFault"],
        "source": ["UsageError", "open_reward"],
    },
)
