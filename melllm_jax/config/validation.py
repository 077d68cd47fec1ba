"""Field checks of the config dataclasses, and the mark of fields outside a run's identity.

Plain data, no JAX. Fields marked `WHERE` say where a run happens and leave its result alone.
"""

from collections.abc import Mapping
import types
from typing import Any

from melllm_jax.errors import Mistake

WHERE: Mapping[str, Any] = types.MappingProxyType({"identity": False})


def require(name: str, value: Any, holds: bool, rule: str) -> None:
    """Raises Mistake that names the field, its value and the rule, unless the rule holds."""
    if not holds:
        raise Mistake(f"{name}={value}: {rule}")
