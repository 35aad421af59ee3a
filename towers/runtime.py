"""TensorFlow as this package needs it: legacy Keras chosen before TensorFlow is first imported.

Reads the environment; sets ``TF_USE_LEGACY_KERAS`` if it is not set. TensorFlow Recommenders is built on
Keras 2 (``tf_keras``); TensorFlow decides at its first import which Keras ``tf.keras`` is, and never again.
"""

from __future__ import annotations

import os
import sys

from pipelines.contracts.errors import ConfigError

_SWITCH = "TF_USE_LEGACY_KERAS"


def require_legacy_keras() -> None:
    """Makes sure that ``tf.keras`` is Keras 2.

    Raises:
        ConfigError: the switch is set to another value, or TensorFlow was imported before it was set.
    """
    if os.environ.setdefault(_SWITCH, "1") != "1":
        raise ConfigError(f"{_SWITCH}: expected '1', got {os.environ[_SWITCH]!r}. Unset it, or set it to 1.")
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is None:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        return
    # Keras 2 under this name has no version.
    version = str(getattr(tensorflow.keras, "__version__", "2."))
    if not version.startswith("2."):
        raise ConfigError(
            f"TensorFlow was imported with Keras {version} before towers could ask for Keras 2. "
            f"Set {_SWITCH}=1 in the environment, or import towers before tensorflow."
        )


require_legacy_keras()

import tensorflow as tf  # noqa: E402
import tensorflow_recommenders as tfrs  # noqa: E402
import tf_keras  # noqa: E402

# By default a GPU multiplies float32 with a mantissa of ten bits: vectors would differ from those of the exported
# towers on a CPU. ``towers.mixed_precision`` is the option for speed.
tf.config.experimental.enable_tensor_float_32_execution(False)

__all__ = ["require_legacy_keras", "tf", "tf_keras", "tfrs"]
