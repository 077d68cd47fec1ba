"""What a run is, as frozen plain data: importing this package imports no JAX."""
