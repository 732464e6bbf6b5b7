"""The entry point `lmms_eval.models`: tells lmms-eval the classes of the model `m3`.

Apart from lmms.py, because the harness loads entry points while it is itself half imported.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest


def manifests() -> "list[ModelManifest]":
    """One model, for tasks that send chats and for tasks that send text and images apart
    (--force_simple).
    """
    from lmms_eval.models.registry_v2 import ModelManifest

    module = "m3.evaluation.harness.lmms_model"
    return [
        ModelManifest(
            "m3", simple_class_path=f"{module}.M3Simple", chat_class_path=f"{module}.M3Chat"
        )
    ]
