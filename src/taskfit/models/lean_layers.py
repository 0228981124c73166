"""What the decoders of transformers are made of, family by family, for the lean pass.

Each reader names the parts of a stock decoder; nothing is computed or copied here. Families that
are not in the table, and layers that do something else, keep the stock pass.

Legend: T tokens, D hidden width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from taskfit.models.lean_weights import NotLeanError

# Cosines and sines of the angles of each kind of layer, (T, R) each.
Angles = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Norm:
    """A normalisation over the last dimension, computed in float32.

    Attributes:
        weight: Factor of each number, float32.
        bias: Added to each, float32, or None.
        epsilon: Keeps the divisor from zero.
        centers: Whether the mean is taken off first (LayerNorm, else RMSNorm).
    """

    weight: Tensor | None
    bias: Tensor | None
    epsilon: float
    centers: bool
    width: int

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise rows of float32."""
        if self.centers:
            shape = (self.width,)
            return nn.functional.layer_norm(x, shape, self.weight, self.bias, self.epsilon)
        return nn.functional.rms_norm(x, (self.width,), self.weight, self.epsilon)


@dataclass(frozen=True, slots=True)
class LayerParts:
    """One layer of a decoder.

    Attributes:
        queries_keys_values: Linear layers, in this order, of one input.
        mixed: Linear layer behind the attention.
        entering: Linear layers of the MLP's input; with a gate the gate is first.
        leaving: Linear layer of the MLP's output.
        activation: Of the MLP.
        is_gated: Whether the activation of the first half is a factor of the second.
        norms: Before attention, behind it, before the MLP, behind it.
        head_norms: Of each query and each key, or none.
        num_heads: Query heads.
        num_kv: Key-value heads.
        scaling: Factor of the scores.
        softcap: Scores s become softcap * tanh(s / softcap).
        has_window: Whether it sees a limited number of positions.
        kind: Whose angles rotate queries and keys; None: nothing is rotated.
        residual_factor: Of what attention and MLP add.
    """

    queries_keys_values: tuple[nn.Module, ...]
    mixed: nn.Module
    entering: tuple[nn.Module, ...]
    leaving: nn.Module
    activation: Callable[[Tensor], Tensor]
    is_gated: bool
    norms: tuple[Norm, Norm | None, Norm, Norm | None]
    head_norms: tuple[Norm, Norm] | None
    num_heads: int
    num_kv: int
    scaling: float
    softcap: float | None
    has_window: bool
    kind: str | None
    residual_factor: float = 1.0

    def activated(self, entered: Tensor) -> Tensor:
        """Return what enters the last linear layer of the MLP, of what left the first ones."""
        if not self.is_gated:
            return self.activation(entered)
        gate, rest = entered.chunk(2, dim=-1)
        return self.activation(gate).mul_(rest)


@dataclass(frozen=True, slots=True)
class DecoderParts:
    """A whole decoder.

    Attributes:
        layers: From the lowest to the highest.
        embed: Token ids and positions, (1, T) each, to what enters the first layer, (1, T, D).
        angles: What enters and positions to the angles of each kind of layer.
        final: The last norm, or None.
        project_out: Linear layer behind it, or None.
    """

    layers: tuple[LayerParts, ...]
    embed: Callable[[Tensor, Tensor], Tensor]
    angles: Callable[[Tensor, Tensor], Angles]
    final: Norm | None
    project_out: nn.Module | None = None


def read_decoder(model: PreTrainedModel) -> DecoderParts:
    """Return the parts of a model's decoder.

    Raises:
        NotLeanError: If its family is not known here, or it does something else.
    """
    family = str(model.config.get_text_config().model_type)
    if family not in READERS:
        raise NotLeanError(f"models of the type {family} are not known to it")
    return READERS[family](model.get_decoder(), model.config.get_text_config())


def _rms(module: Any, epsilon: float, *, from_one: bool = False) -> Norm:  # noqa: ANN401
    """Read an RMSNorm; Gemma's weights say how much more than 1."""
    weight = module.weight.detach().float()
    return Norm(weight + 1 if from_one else weight, None, epsilon, False, len(weight))


def _layer_norm(module: nn.LayerNorm) -> Norm:
    weight = None if module.weight is None else module.weight.detach().float()
    bias = None if module.bias is None else module.bias.detach().float()
    return Norm(weight, bias, module.eps, True, int(module.normalized_shape[0]))


def _read_llama(decoder: Any, config: Any) -> DecoderParts:  # noqa: ANN401
    """Read Llama and those that differ from it in a few places."""
    family = config.model_type
    is_gemma, epsilon = family.startswith("gemma"), config.rms_norm_eps

    def norm(module: Any) -> Norm:  # noqa: ANN401
        return _rms(module, epsilon, from_one=is_gemma)

    def read(layer: Any) -> LayerParts:  # noqa: ANN401
        attention, mlp = layer.self_attn, layer.mlp
        if family == "phi3":
            qkv, entering = [attention.qkv_proj], [mlp.gate_up_proj]
            activation = mlp.activation_fn
        else:
            qkv = [attention.q_proj, attention.k_proj, attention.v_proj]
            entering, activation = [mlp.gate_proj, mlp.up_proj], mlp.act_fn
        norms: tuple[Norm, Norm | None, Norm, Norm | None]
        before, after = norm(layer.input_layernorm), norm(layer.post_attention_layernorm)
        norms = (before, None, after, None)
        if family in ("gemma2", "gemma3_text"):
            inner, last = layer.pre_feedforward_layernorm, layer.post_feedforward_layernorm
            norms = (before, after, norm(inner), norm(last))
        has_heads = family in ("qwen3", "gemma3_text")
        windowed = family in ("qwen2", "qwen3", "gemma2", "gemma3_text")
        window = attention.sliding_window if windowed else _window(config)
        return LayerParts(
            queries_keys_values=tuple(qkv),
            mixed=attention.o_proj,
            entering=tuple(entering),
            leaving=mlp.down_proj,
            activation=activation,
            is_gated=True,
            norms=norms,
            head_norms=(norm(attention.q_norm), norm(attention.k_norm)) if has_heads else None,
            num_heads=config.num_attention_heads,
            num_kv=config.num_key_value_heads,
            scaling=float(attention.scaling),
            softcap=attention.attn_logit_softcapping if family == "gemma2" else None,
            has_window=window is not None,
            kind=attention.layer_type if family == "gemma3_text" else "",
            residual_factor=layer.residual_multiplier if family == "granite" else 1.0,
        )

    factor = config.embedding_multiplier if family == "granite" else 1.0

    def embed(ids: Tensor, positions: Tensor) -> Tensor:
        found: Tensor = decoder.embed_tokens(ids)
        return found if factor == 1 else found * factor

    kinds = sorted(set(config.layer_types)) if family == "gemma3_text" else [""]

    def angles(entering: Tensor, positions: Tensor) -> Angles:
        names = [(kind,) if kind else () for kind in kinds]
        found = [decoder.rotary_emb(entering, positions, *name) for name in names]
        return {kind: (cos[0], sin[0]) for kind, (cos, sin) in zip(kinds, found, strict=True)}

    return DecoderParts(tuple(map(read, decoder.layers)), embed, angles, norm(decoder.norm))


def _window(config: Any) -> int | None:  # noqa: ANN401
    """Return the window of families where all layers have it, or none has."""
    window: int | None = config.sliding_window if config.model_type in ("mistral", "phi3") else None
    return window


def _read_gpt2(decoder: Any, config: Any) -> DecoderParts:  # noqa: ANN401
    if config.add_cross_attention:
        raise NotLeanError("it attends to another model")

    def read(layer: Any) -> LayerParts:  # noqa: ANN401
        return LayerParts(
            queries_keys_values=(layer.attn.c_attn,),
            mixed=layer.attn.c_proj,
            entering=(layer.mlp.c_fc,),
            leaving=layer.mlp.c_proj,
            activation=layer.mlp.act,
            is_gated=False,
            norms=(_layer_norm(layer.ln_1), None, _layer_norm(layer.ln_2), None),
            head_norms=None,
            num_heads=config.num_attention_heads,
            num_kv=config.num_attention_heads,
            scaling=float(layer.attn.scaling),
            softcap=None,
            has_window=False,
            kind=None,
        )

    def embed(ids: Tensor, positions: Tensor) -> Tensor:
        found: Tensor = decoder.wte(ids) + decoder.wpe(positions)
        return found

    return DecoderParts(tuple(map(read, decoder.h)), embed, _no_angles, _layer_norm(decoder.ln_f))


def _read_opt(decoder: Any, config: Any) -> DecoderParts:  # noqa: ANN401
    if not config.do_layer_norm_before:
        raise NotLeanError("its layers are normalised at their end")

    def read(layer: Any) -> LayerParts:  # noqa: ANN401
        attention = layer.self_attn
        before, inner = layer.self_attn_layer_norm, layer.final_layer_norm
        return LayerParts(
            queries_keys_values=(attention.q_proj, attention.k_proj, attention.v_proj),
            mixed=attention.out_proj,
            entering=(layer.fc1,),
            leaving=layer.fc2,
            activation=layer.activation_fn,
            is_gated=False,
            norms=(_layer_norm(before), None, _layer_norm(inner), None),
            head_norms=None,
            num_heads=config.num_attention_heads,
            num_kv=config.num_attention_heads,
            scaling=float(attention.scaling),
            softcap=None,
            has_window=False,
            kind=None,
        )

    def embed(ids: Tensor, positions: Tensor) -> Tensor:
        found: Tensor = decoder.embed_tokens(ids)
        if decoder.project_in is not None:
            found = decoder.project_in(found)
        places: Tensor = decoder.embed_positions(ids, 0, position_ids=positions)
        return found + places

    last = decoder.final_layer_norm
    final = None if last is None else _layer_norm(last)
    layers = tuple(map(read, decoder.layers))
    return DecoderParts(layers, embed, _no_angles, final, decoder.project_out)


def _no_angles(entering: Tensor, positions: Tensor) -> Angles:
    return {}


READERS: dict[str, Callable[[Any, Any], DecoderParts]] = {
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "granite", "phi3"),
        _read_llama,
    ),
    "gpt2": _read_gpt2,
    "opt": _read_opt,
}
