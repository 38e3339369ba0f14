"""alignkit: the runnable companion to "A Survey on Progress in LLM Alignment from the Perspective of Reward Design".

    from alignkit import Annotator, evaluation, feedback, load_policy, optimize, rewards, worlds

Names are imported when first used, so that the command line starts at once.
"""

from importlib import import_module

_ROOMS = ("worlds", "feedback", "rewards", "optimize", "evaluation", "claims", "catalog", "plots", "taxonomy")
_NAMES = {"Annotator": "alignkit.feedback", "Policy": "alignkit.policy", "load_policy": "alignkit.policy"}

__all__ = [*_ROOMS, *_NAMES]  # noqa: PLE0604
__version__ = "0.1.0"


def __getattr__(name: str):
    if name in _ROOMS:
        return import_module(f"alignkit.{name}")
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'alignkit' has no attribute {name!r}")
