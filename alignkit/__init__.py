"""alignkit: the runnable companion to "A Survey on Progress in LLM Alignment from the Perspective of Reward Design".

    from alignkit import Annotator, evaluation, feedback, load_policy, optimize, rewards, worlds

The rooms are ordinary packages; the three names below are looked up when first used (PEP 562), so that
`import alignkit` and the command line don't wait for torch.
"""

from importlib import import_module

HOMES = {"Annotator": "alignkit.feedback", "Policy": "alignkit.policy", "load_policy": "alignkit.policy"}

__all__ = ["Annotator", "Policy", "load_policy"]
__version__ = "0.1.0"


def __getattr__(name: str):
    if name in HOMES:
        return getattr(import_module(HOMES[name]), name)
    raise AttributeError(f"module 'alignkit' has no attribute {name!r}")
