"""The one contract between data and model: packed rows of speech and text on one time axis."""

from typing import Any, NamedTuple


class Batch(NamedTuple):
    """Packed rows: NumPy arrays from the pipeline, JAX arrays in the model.

    A row holds several segments (examples) one after another; nothing of one segment reaches
    another. A segment holds text positions and clips of speech. Being a named tuple, it is a
    pytree with no registration.

    tokens       int32 [b t]     ids; at speech positions the audio placeholder of the tokenizer
    patches      float [b t p]   r mel frames of m bands a position, frame-major; zero at text
    frames       int32 [b t]     real frames in the patch: r, fewer in a clip's last one, 0 at text
    clips        int32 [b t]     0 at text; the number of the clip in its segment, from 1
    segments     int32 [b t]     number of the segment in its row, from 1; 0 is padding
    positions    int32 [b t]     place in the segment, from 0
    loss_weight  float32 [b t]   weight of this token as a target (told from the position before)
    sources      int32 [b t]     number of the corpus that the segment came from, in Data.sources
    """

    tokens: Any
    patches: Any
    frames: Any
    clips: Any
    segments: Any
    positions: Any
    loss_weight: Any
    sources: Any

    @property
    def is_speech(self) -> Any:
        """Bool [b t]: where a patch, not a token, is read."""
        return self.clips > 0
