"""Whisper whole: its encoder, and the decoder that reads what the encoder says.

Radford et al. 2022 (arXiv 2212.04356); transformers' `WhisperModel` and, with its head, which is
the embedding, `WhisperForConditionalGeneration`. A decoder block is x + self-attention(norm x),
then x + cross-attention(norm x), then x + MLP(norm x), all with biases but for the keys'. How a
block attends, to a cache or to all at once, is a function that whoever calls passes in.
"""

from collections.abc import Callable

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from melllm_jax import sharding
from melllm_jax.config.whisper import WhisperSpec
from melllm_jax.encoders.transformer_encoder import GeluMlp, SelfAttention
from melllm_jax.encoders.whisper import WhisperEncoder
from melllm_jax.nn import attention
from melllm_jax.nn.attention_kernels import AttendFn
from melllm_jax.nn.layers import LayerNorm, Sizes, constant, einsum, weight
from melllm_jax.nn.vocab_parallel import embed_tokens

KeysValues = tuple[Array, Array]  # of one layer over what the encoder gave, both [b s n h]
CrossAttendFn = Callable[[Array], Array]  # q [b t n h] → what it reads of the encoder's positions


class CrossAttention(SelfAttention):
    """Attention of the decoder's positions to the encoder's."""

    def keys_values(self, states_bsd: Float[Array, "b s d"]) -> KeysValues:
        """Keys and values of what the encoder gave: made once a clip."""
        return self._projected("k", states_bsd), self._projected("v", states_bsd)

    def read(self, x_btd: Float[Array, "b t d"], attend: CrossAttendFn) -> Float[Array, "b t d"]:
        """What the positions `x_btd` read."""
        return self._output(attend(self._projected("q", x_btd)))


class DecoderBlock(nnx.Module):
    """One layer."""

    def __init__(self, rngs: nnx.Rngs, size: Sizes):
        self.attn_norm = LayerNorm(size)
        self.attn = SelfAttention(rngs, size)
        self.cross_norm = LayerNorm(size)
        self.cross = CrossAttention(rngs, size)
        self.mlp_norm = LayerNorm(size)
        self.mlp = GeluMlp(rngs, size)

    def __call__(
        self, x_btd: Float[Array, "b t d"], attend: AttendFn, attend_cross: CrossAttendFn
    ) -> Float[Array, "b t d"]:
        """`attend` is given q, k and v [b t n h], `attend_cross` q alone."""
        x_btd = x_btd + self.attn(self.attn_norm(x_btd), attend)
        x_btd = x_btd + self.cross.read(self.cross_norm(x_btd), attend_cross)
        return x_btd + self.mlp(self.mlp_norm(x_btd))


class TextDecoder(nnx.Module):
    """Embedding, learned positions, blocks with their weights stacked, a last norm, a tied head."""

    def __init__(self, rngs: nnx.Rngs, spec: WhisperSpec):
        own = spec.decoder
        size = {"d": spec.encoder.d, "n": own.n, "h": spec.h, "f": own.f, "v": own.v}
        size |= {"t": own.positions}
        self.embed = weight(rngs, size, "v d", fan_in="d")
        self.positions = constant(size, "t d", 0.0)
        self.blocks = jax.vmap(lambda layer: DecoderBlock(layer, size))(rngs.split(own.l))
        self.norm = LayerNorm(size)

    def inputs(self, tokens_bt: Int[Array, "b t"], first: Array | int) -> Float[Array, "b t d"]:
        """The input of the first block for tokens at the positions from `first` on."""
        t = tokens_bt.shape[1]
        places = jax.lax.dynamic_slice_in_dim(self.positions[...], first, t)
        x_btd = embed_tokens(self.embed[...], tokens_bt)
        return x_btd + jax.reshard(places[None], jax.P(None, None, None)).astype(x_btd.dtype)

    def hidden(
        self, tokens_bt: Int[Array, "b t"], states_bsd: Float[Array, "b s d"]
    ) -> Float[Array, "layers b t d"]:
        """What enters the first block, then the output of each, before the last norm: l + 1.

        Tokens stand at the positions from 0 on, and each sees those before it; `states_bsd` is what
        the encoder gave, all of which all see.
        """
        x_btd = self.inputs(tokens_bt, 0)
        (b, t), s = tokens_bt.shape, states_bsd.shape[1]
        causal = jnp.tril(jnp.ones((t, t), bool))
        causal_bts = jax.reshard(jnp.broadcast_to(causal, (b, t, t)), sharding.a("b t s"))
        attend = lambda q, k, v: attention.attend(q, k, v, causal_bts)
        all_bts = jnp.ones((b, t, s), bool, out_sharding=sharding.a("b t s"))

        def apply(x_btd: Array, block: DecoderBlock) -> tuple[Array, Array]:
            k, v = block.cross.keys_values(states_bsd)
            y_btd = block(x_btd, attend, lambda q: attention.attend(q, k, v, all_bts))
            return y_btd, y_btd

        return jnp.concatenate([x_btd[None], jax.lax.scan(apply, x_btd, self.blocks)[1]])

    def layer(self, i: int) -> DecoderBlock:
        """Layer `i` alone."""
        return jax.tree.map(lambda x: x[i], self.blocks)

    def logits(self, x_btd: Float[Array, "b t d"]) -> Float[Array, "b t v"]:
        """Scores of the next token, float32, of the last norm's output."""
        return einsum("btd,vd->btv", x_btd, self.embed[...], jnp.float32)


class WhisperModel(nnx.Module):
    """Encoder, at `.front.encoder` as in a model with that front end, and decoder."""

    def __init__(self, rngs: nnx.Rngs, spec: WhisperSpec):
        self.spec = spec
        self.front = nnx.Dict(encoder=WhisperEncoder(rngs, spec.encoder, spec.mel.m))
        self.decoder = TextDecoder(rngs, spec)

    def encode(self, mels_bfm: Float[Array, "b f m"]) -> Float[Array, "b s d"]:
        """What the encoder gives for windows of sound, one a row, all frames of which it hears."""
        states: Array = self.front.encoder.whole(mels_bfm)
        return states

    def __call__(
        self, mels_bfm: Float[Array, "b f m"], tokens_bt: Int[Array, "b t"]
    ) -> Float[Array, "b t v"]:
        """Scores of the token after each, float32."""
        hidden = self.decoder.hidden(tokens_bt, self.encode(mels_bfm))
        return self.decoder.logits(self.decoder.norm(hidden[-1]))


def whole_windows(mels_bfm: Float[Array, "b f m"]) -> Int[Array, "b f"]:
    """`sequences` of `WhisperEncoder` where each row is one."""
    return jnp.ones(mels_bfm.shape[:2], jnp.int32, out_sharding=sharding.a("b t"))
