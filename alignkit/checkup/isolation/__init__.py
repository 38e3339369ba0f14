"""A reward, by name or in memory, that runs in a process of its own."""

from alignkit.checkup.isolation.process import CantGoOn, Incident, IsolatedReward, LoadFault
from alignkit.checkup.isolation.source import UsageError, open_reward

__all__ = ["CantGoOn", "Incident", "IsolatedReward", "LoadFault", "UsageError", "open_reward"]
