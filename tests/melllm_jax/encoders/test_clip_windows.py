import jax
import jax.numpy as jnp
import pytest

from melllm_jax import sharding
from melllm_jax.encoders import clip_windows
from tests.support import models

# A row of text (0), a clip of two positions, one of six beside it, text, and one of five.
CLIPS = [0, 1, 1, 2, 2, 2, 2, 2, 2, 0, 3, 3, 3, 3, 3]
FOLLOWS = [
    int(clip > 0 and clip == before) for before, clip in zip([0, *CLIPS], CLIPS, strict=False)
]


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(clip_windows, "WINDOW", 4)


def laid_out(x):
    return jax.reshard(jnp.asarray(x), sharding.a("b s"))


def computed(function):
    """`function` of the place of each position in its clip, on one device."""
    with models.one_device():
        follows, clips = laid_out([FOLLOWS]), laid_out([CLIPS])
        found = models.jitted(
            lambda follows, clips: function(clip_windows.places_in_clips(follows > 0, clips > 0))
        )
        return jax.device_get(found(follows, clips))


def test_a_clip_is_cut_into_windows_that_begin_where_they_are_told_from():
    place, found = computed(lambda place: (place, clip_windows.windows(place)))
    assert place[0].tolist() == [-1, 0, 1, 0, 1, 2, 3, 4, 5, -1, 0, 1, 2, 3, 4]
    assert found.ids[0].tolist() == [0, 2, 2, 4, 4, 4, 4, 8, 8, 0, 11, 11, 11, 11, 15]
    assert found.places[0].tolist() == [0, 0, 1, 0, 1, 2, 3, 0, 1, 0, 0, 1, 2, 3, 0]


def test_room_fills_up_the_last_windows_of_clips_that_have_several():
    def moved(place):
        room = clip_windows.room(place)
        there = clip_windows.take(place[..., None] + 10, room.sources)
        return room, there, clip_windows.take(there, room.targets)

    room, there, back = computed(moved)
    assert room.targets[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 14, 15, 16]
    unused = 4  # as much as three clips of five could need, and these two do not
    sources = [0, 1, 2, 3, 4, 5, 6, 7, 8, -1, -1, 9, 10, 11, 12, 13, 14, -1, -1, -1]
    assert room.sources[0].tolist() == sources + [-1] * unused
    ids = [0, 2, 2, 4, 4, 4, 4, 8, 8, 8, 8, 0, 11, 11, 11, 11, 15, 15, 15, 15]
    assert room.windows.ids[0].tolist() == ids + [0] * unused
    inside = [0, 0, 1, 0, 1, 2, 3, 0, 1, 2, 3, 0, 0, 1, 2, 3, 0, 1, 2, 3]
    assert room.windows.places[0].tolist() == inside + [0] * unused
    places = [9, 10, 11, 10, 11, 12, 13, 14, 15, 9, 10, 11, 12, 13, 14]
    assert there[0, :, 0].tolist() == [0 if x < 0 else places[x] for x in sources] + [0] * unused
    assert back[0, :, 0].tolist() == places
