"""Layer groups from tensor names of several architectures."""

import pytest
from heterosis.merge.groups import LayerGroup, depth, layer_group
from heterosis.merge.parents import ParentSet


@pytest.mark.parametrize(
    ("tensor", "group"),
    [
        ("model.embed_tokens.weight", "embed"),
        ("model.layers.3.self_attn.q_proj.weight", "layers.3.attn"),
        ("model.layers.3.self_attn.q_norm.weight", "layers.3.other"),
        ("model.layers.12.mlp.down_proj.weight", "layers.12.mlp"),
        ("model.layers.3.post_attention_layernorm.weight", "layers.3.other"),
        ("model.layers.0.mlp.experts.7.gate_proj.weight", "layers.0.mlp"),
        ("model.layers.0.block_sparse_moe.gate.weight", "layers.0.mlp"),
        ("model.layers.0.linear_attn.in_proj.weight", "layers.0.attn"),
        ("model.layers.5.mixer.A_log", "layers.5.other"),
        ("model.norm.weight", "head"),
        ("lm_head.weight", "head"),
        ("transformer.wte.weight", "embed"),
        ("wpe.weight", "embed"),
        ("h.11.attn.c_attn.weight", "layers.11.attn"),
        ("h.11.ln_1.bias", "layers.11.other"),
        ("transformer.h.0.mlp.c_fc.bias", "layers.0.mlp"),
        ("transformer.ln_f.weight", "head"),
        ("gpt_neox.embed_in.weight", "embed"),
        ("gpt_neox.layers.2.attention.dense.weight", "layers.2.attn"),
        ("embed_out.weight", "head"),
        ("model.decoder.layers.4.fc1.weight", "layers.4.mlp"),
        ("encoder.block.1.layer.0.SelfAttention.q.weight", "layers.1.attn"),
        ("transformer.h.6.self_attention.query_key_value.weight", "layers.6.attn"),
        ("word_embeddings_layernorm.weight", "head"),
    ],
)
def test_names_give_groups(tensor, group):
    found = layer_group(tensor)
    assert found.name == group
    assert LayerGroup.from_name(group) == found


def test_depth_runs_from_embeddings_to_head():
    names = ["embed", "layers.0.attn", "layers.2.mlp", "layers.4.other", "head"]
    assert [depth(name, 5) for name in names] == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert depth(LayerGroup(0, "attn"), 1) == 0.0
    with pytest.raises(ValueError, match="must be below the number of layers, got 5 of 5"):
        depth("layers.5.attn", 5)


@pytest.mark.parametrize("name", ["", "layers.x.attn", "layers.1.norm", "Head", "layers.1.attn "])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="a layer group is named `embed`, `head` or"):
        LayerGroup.from_name(name)


@pytest.mark.parametrize(("layer", "kind"), [(None, "attn"), (1, "embed"), (-1, "mlp")])
def test_impossible_groups_are_refused(layer, kind):
    with pytest.raises(ValueError, match="a layer group has layer None with kind embed or head"):
        LayerGroup(layer, kind)


def test_groups_come_in_model_order(parents: ParentSet):
    inner = [f"layers.{i}.{kind}" for i in range(3) for kind in ("attn", "mlp", "other")]
    assert parents.groups == ("embed", *inner, "head")
    assert parents.n_layers == 3
