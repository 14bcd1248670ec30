"""Layer groups from tensor names of several architectures."""

import pytest
from heterosis.merge.recipe.groups import (
    Grouping,
    LayerGroup,
    depth,
    layer_group,
    lines,
    tensor_rules,
)


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
        ("model.layers.3.mlp.experts.gate_up_proj", "layers.3.mlp"),
        ("model.layers.3.mlp.router.weight", "layers.3.mlp"),
        ("model.layers.3.feed_forward.shared_expert.up_proj.weight", "layers.3.mlp"),
        ("model.layers.3.router.proj.weight", "layers.3.mlp"),
        ("model.layers.3.mlp.gate.e_score_correction_bias", "layers.3.mlp"),
        ("model.vision_tower.vision_model.encoder.layers.3.self_attn.q_proj.weight", "vision"),
        ("model.visual.blocks.3.mlp.fc1.weight", "vision"),
        ("vision_model.embeddings.patch_embedding.weight", "vision"),
        ("model.multi_modal_projector.linear_1.weight", "vision"),
        ("model.connector.modality_projection.proj.weight", "vision"),
        ("model.image_newline", "vision"),
        ("audio_tower.layers.3.fc1.weight", "audio"),
        ("thinker.audio_tower.conv1.weight", "audio"),
        ("model.embed_audio.embedding.weight", "audio"),
        ("model.language_model.layers.3.self_attn.q_proj.weight", "layers.3.attn"),
        ("model.language_model.embed_tokens.weight", "embed"),
        ("model.layers.3.self_attn.qkv_proj.vision.weight", "layers.3.attn"),
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
    assert [depth(name, 5) for name in ("vision", "audio", "layers.1.q", "router")] == [
        0,
        0,
        0.25,
        1,
    ]
    with pytest.raises(ValueError, match="must be below the number of layers, got 5 of 5"):
        depth("layers.5.attn", 5)


@pytest.mark.parametrize(
    "name", ["", "layers.x.attn", "layers.1", "layers.01.mlp", "Head", "layers.1.attn ", "1st"]
)
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="a layer group is named `embed`, `head` or"):
        LayerGroup.from_name(name)


@pytest.mark.parametrize(("layer", "kind"), [(None, ""), (1, "Attn"), (-1, "mlp"), (2, "a.b")])
def test_impossible_groups_are_refused(layer, kind):
    with pytest.raises(
        ValueError, match="a layer group has layer None or >= 0 and a kind of small"
    ):
        LayerGroup(layer, kind)


def test_rules_come_before_the_names():
    grouping = Grouping(
        (
            ("*.layers.{layer}.*.q_proj.*", "layers.{layer}.q"),
            ("*.layers.0?.*", "layers.0.mlp"),
            ("*router*", "router"),
            ("*.experts.{layer}.*", "layers.{layer}.expert"),
            ("lm_head.weight", "embed"),
        )
    )
    wanted = {
        "model.layers.12.self_attn.q_proj.weight": "layers.12.q",
        "model.layers.12.self_attn.k_proj.weight": "layers.12.attn",
        "model.layers.3.mlp.router.weight": "router",
        "model.layers.2.mlp.experts.7.up_proj.weight": "layers.7.expert",
        "lm_head.weight": "embed",
        "lm_head_weight": "head",
    }
    assert {tensor: grouping.group(tensor).name for tensor in wanted} == wanted
    assert LayerGroup.from_name("layers.12.q") == LayerGroup(12, "q")
    assert hash(grouping) == hash(Grouping(grouping.rules))
    assert Grouping().group("lm_head.weight") == layer_group("lm_head.weight")


def test_a_layer_that_stands_twice_is_the_same_number():
    grouping = Grouping((("*.{layer}.*.{layer}", "layers.{layer}.pair"),))
    assert grouping.group("x.3.y.3").name == "layers.3.pair"
    assert grouping.group("x.3.y.4").name == "head"


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (("*.q_proj.*", "layers.{layer}.q"), "may contain {layer} only if its pattern does, got"),
        (("*", "Queries"), "a layer group is named .* in small letters; got 'Queries'"),
    ],
)
def test_bad_rules_are_refused(rule, message):
    with pytest.raises(ValueError, match=message):
        Grouping((rule,))


def test_names_come_in_model_order():
    grouping = Grouping(
        (("*.q_proj.*", "queries"), ("*.layers.{layer}.*.v_proj.*", "layers.{layer}.v"))
    )
    tensors = (
        "lm_head.weight",
        "model.layers.10.self_attn.q_proj.weight",
        "model.layers.10.self_attn.v_proj.weight",
        "model.layers.10.self_attn.o_proj.weight",
        "model.layers.2.mlp.up_proj.weight",
        "model.visual.blocks.0.mlp.fc1.weight",
        "model.embed_tokens.weight",
    )
    inner = ("layers.2.mlp", "layers.10.attn", "layers.10.v")
    assert grouping.names(tensors) == ("embed", "vision", *inner, "head", "queries")


def test_lines_is_linear_in_depth():
    # LiNeS with L = 5 layers, counted from 1: alpha + beta * (l - 1) / (L - 1).
    scales = [lines(0.2, 0.8, depth(f"layers.{i}.mlp", 5)) for i in range(5)]
    assert scales == pytest.approx([0.2 + 0.8 * i / 4 for i in range(5)])


def test_every_tensor_gets_a_group_of_its_own():
    tensors = [
        "model.embed_tokens.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.0.mlp.up_proj.bias",
        "model.layers.12.mlp.up_proj.weight",
        "model.layers.12.mlp.experts.3.up_proj.weight",
        "vision_tower.encoder.layers.0.mlp.up_proj.weight",
        "model.layers.1.A_log",
        "lm_head.weight",
    ]
    rules = tensor_rules(tensors)
    grouping = Grouping(rules)
    names = [grouping.group(tensor).name for tensor in tensors]
    assert names == [
        "embed_tokens",
        "layers.0.mlp_up_proj",
        "layers.0.mlp_up_proj_bias",
        "layers.12.mlp_up_proj",
        "layers.12.mlp_experts_3_up_proj",
        "layers.0.vision_tower_encoder_layers_mlp_up_proj",
        "layers.1.a_log",
        "lm_head",
    ]
    assert len(rules) == 7, "one for all layers"


def test_rules_of_the_user_come_first():
    rules = (("*up_proj*", "layers.0.mine"),)
    found = tensor_rules(["model.layers.0.up_proj.weight", "model.norm.weight"], rules)
    assert found == (*rules, ("model.norm.weight", "norm"))
