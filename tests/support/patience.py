"""How long tests wait for what must come: enough for any load, so that none ends by the clock."""

HANG = 900.0  # seconds after which whatever has not come is taken never to come
