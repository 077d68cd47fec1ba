"""Field checks of the config dataclasses, and the marks of fields that identity treats apart.

Plain data, no JAX. Fields marked `WHERE` say where a run happens and leave its result alone. A
field marked `LATER` came when there were runs already: at its default it is no part of a run's
identity and not written down, so that theirs stay what they were.
"""

from collections.abc import Mapping
import types
from typing import Any

from melllm_jax.errors import Mistake

WHERE: Mapping[str, Any] = types.MappingProxyType({"identity": False})
LATER: Mapping[str, Any] = types.MappingProxyType({"later": True})


def require(name: str, value: Any, holds: bool, rule: str) -> None:
    """Raises Mistake that names the field, its value and the rule, unless the rule holds."""
    if not holds:
        raise Mistake(f"{name}={value}: {rule}")
