"""The transformer computes what Wan's does, with and without a prepared context."""

import pytest
import torch
from diffusers import WanTransformer3DModel

from pixeldance.errors import ConfigError, InputError
from pixeldance.models.transformer import PixelDanceTransformer3DModel

TINY = {
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "in_channels": 8,
    "out_channels": 4,
    "text_dim": 20,
    "freq_dim": 32,
    "ffn_dim": 64,
    "num_layers": 2,
    "rope_max_seq_len": 32,
}
PICTURES = {**TINY, "in_channels": 36, "image_dim": 16, "added_kv_proj_dim": 48}
KINDS = {
    "text-to-video": TINY,
    "image-to-video": PICTURES,
    "first-last": {**PICTURES, "pos_embed_seq_len": 14},
    "per-token timesteps": TINY,
    "patch 1": {**TINY, "patch_size": (1, 1, 1), "cross_attn_norm": False},
}


def make_inputs(kind, batch=2):
    """Inputs of both models; Wan splits picture and text tokens at 512 text tokens."""
    generator = torch.Generator().manual_seed(1)
    config = KINDS[kind]
    inputs = {
        "hidden_states": torch.randn(batch, config["in_channels"], 3, 4, 6, generator=generator),
        "timestep": torch.tensor([300.0, 912.5])[:batch],
        "encoder_hidden_states": torch.randn(
            batch, 512 if "image_dim" in config else 9, 20, generator=generator
        ),
    }
    if "image_dim" in config:
        rows = 2 * batch if "pos_embed_seq_len" in config else batch
        inputs["encoder_hidden_states_image"] = torch.randn(rows, 7, 16, generator=generator)
    if kind == "per-token timesteps":
        given = torch.rand(batch, 18, generator=generator) < 0.4
        inputs["timestep"] = torch.where(given, 0.0, 640.0)
    return inputs


@pytest.fixture(scope="module")
def models():
    """Wan's model and ours by kind, with equal weights of which none is trivial."""
    built = {}
    for kind, config in KINDS.items():
        torch.manual_seed(0)
        theirs = WanTransformer3DModel(**config).eval()
        for parameter in theirs.parameters():
            if parameter.ndim == 1 or not parameter.any():
                torch.nn.init.normal_(parameter, mean=0.5, std=0.3)
        ours = PixelDanceTransformer3DModel(**config).eval()
        ours.load_state_dict(theirs.state_dict(), strict=True)
        built[kind] = theirs, ours
    return built


@pytest.fixture
def model(models):
    return models["text-to-video"][1]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_velocity_equals_wans(models, kind):
    theirs, ours = models[kind]
    inputs = make_inputs(kind)

    expected = theirs(**inputs).sample

    assert 0.2 < expected.std() < 5
    torch.testing.assert_close(ours(**inputs).sample, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_prepared_context_gives_the_same_velocity(models, kind):
    _, ours = models[kind]
    inputs = make_inputs(kind)
    names = ("encoder_hidden_states", "encoder_hidden_states_image")
    context = ours.prepare_context(*(inputs[name] for name in names if name in inputs))
    prepared = {name: value for name, value in inputs.items() if name not in names}

    (velocity,) = ours(**prepared, context=context, return_dict=False)

    torch.testing.assert_close(velocity, ours(**inputs).sample, rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_real_tokens", [[3, 7], [0, 9], [0, 0], [9, 9], [9, 4]])
@torch.no_grad()
def test_collapsed_padding_changes_nothing(model, num_real_tokens):
    inputs = make_inputs("text-to-video")
    text = inputs.pop("encoder_hidden_states")
    for row, real in zip(text, num_real_tokens, strict=True):
        row[real:] = 0

    context = model.prepare_context(text, num_real_tokens=torch.tensor(num_real_tokens))

    assert context.blocks[0].text.key.shape[1] == min(max(num_real_tokens) + 1, 9)
    expected = model(**inputs, encoder_hidden_states=text).sample
    torch.testing.assert_close(model(**inputs, context=context).sample, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_collapsed_padding_works_beside_picture_tokens(models):
    _, ours = models["first-last"]
    inputs = make_inputs("first-last")
    text, pictures = (
        inputs.pop(name) for name in ("encoder_hidden_states", "encoder_hidden_states_image")
    )
    text[0, 5:], text[1, 8:] = 0, 0
    expected = ours(**inputs, encoder_hidden_states=text, encoder_hidden_states_image=pictures)

    context = ours.prepare_context(text, pictures, num_real_tokens=[5, 8])

    assert context.text.shape[1] == 9
    torch.testing.assert_close(
        ours(**inputs, context=context).sample, expected.sample, rtol=0, atol=1e-5
    )


@torch.no_grad()
def test_selected_context_belongs_to_the_selected_prompts(models):
    _, ours = models["first-last"]
    inputs = make_inputs("first-last")
    text, pictures = (
        inputs.pop(name) for name in ("encoder_hidden_states", "encoder_hidden_states_image")
    )
    text[1, 8:] = 0
    context = ours.prepare_context(text, pictures, num_real_tokens=[512, 8])
    expected = ours(**inputs, context=context).sample

    order = [1, 0, 1]
    inputs = {name: value[order] for name, value in inputs.items()}

    torch.testing.assert_close(
        ours(**inputs, context=context.select(order)).sample, expected[order], rtol=0, atol=1e-5
    )


@torch.no_grad()
def test_a_sample_alone_equals_itself_in_a_batch(model):
    inputs = make_inputs("text-to-video")
    alone = {name: value[1:] for name, value in inputs.items()}
    torch.testing.assert_close(model(**alone).sample, model(**inputs).sample[1:], rtol=0, atol=1e-5)


@torch.no_grad()
def test_equal_per_token_timesteps_equal_one_timestep(model):
    inputs = make_inputs("text-to-video")
    expected = model(**inputs).sample
    inputs["timestep"] = inputs["timestep"][:, None].expand(2, 18)
    torch.testing.assert_close(model(**inputs).sample, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_time_is_embedded_once_per_distinct_value(model, monkeypatch):
    embedded = []
    embed = model.condition_embedder.time_proj.forward
    monkeypatch.setattr(
        model.condition_embedder.time_proj,
        "forward",
        lambda rows: embedded.append(len(rows)) or embed(rows),
    )
    model(**make_inputs("per-token timesteps"))
    assert embedded == [2]


def test_gradients_flow_through_a_prepared_context(models):
    _, ours = models["image-to-video"]
    inputs = make_inputs("image-to-video")
    names = ("encoder_hidden_states", "encoder_hidden_states_image")
    tokens = [inputs.pop(name).requires_grad_() for name in names]
    parameters = list(ours.parameters())

    def gradients(**context):
        loss = ours(**inputs, **context).sample.square().sum()
        return torch.autograd.grad(loss, [*parameters, *tokens])

    expected = gradients(**dict(zip(names, tokens, strict=True)))
    actual = gradients(context=ours.prepare_context(*tokens))

    assert all(gradient.any() for gradient in expected)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_bfloat16_autocast_stays_close_to_float32(model):
    inputs = make_inputs("text-to-video")
    expected = model(**inputs).sample
    with torch.autocast("cpu", torch.bfloat16):
        velocity = model(**inputs).sample
    assert velocity.dtype == torch.bfloat16
    assert (velocity - expected).std() < 0.02 * expected.std()


@torch.no_grad()
def test_rotary_angles_only_see_relative_positions(model):
    query, key = torch.randn(2, 1, 1, 1, 24)
    table = model.rope(torch.empty(1, 8, 5, 16, 16))
    turn = torch.view_as_complex(table).reshape(5, 8, 8, 12)

    def score(at, to):
        rotated = [
            torch.view_as_complex(vector.reshape(12, 2)) * turn[position]
            for vector, position in ((query, at), (key, to))
        ]
        return (rotated[0] * rotated[1].conj()).real.sum()

    torch.testing.assert_close(score((0, 1, 2), (2, 4, 3)), score((2, 4, 4), (4, 7, 5)))
    assert not torch.isclose(score((0, 1, 2), (2, 4, 3)), score((0, 1, 2), (2, 4, 4)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_states": torch.zeros(2, 7, 3, 4, 6)}, "takes batch x 8 channels"),
        ({"hidden_states": torch.zeros(2, 8, 4, 6)}, "takes batch x 8 channels"),
        ({"hidden_states": torch.zeros(2, 8, 3, 5, 6)}, r"multiples of \(1, 2, 2\)"),
        ({"hidden_states": torch.zeros(2, 8, 33, 4, 6)}, "at most 32 per axis"),
        ({"hidden_states": torch.zeros(3, 8, 3, 4, 6)}, "timestep must have shape"),
        ({"timestep": torch.zeros(2, 17)}, "one per token"),
        ({"timestep": torch.tensor(5.0)}, "timestep must have shape"),
        ({"encoder_hidden_states": torch.zeros(2, 9, 21)}, "batch x tokens x 20"),
        ({"encoder_hidden_states": torch.zeros(1, 9, 20)}, "2 videos but 1 texts"),
        ({"encoder_hidden_states": None}, "either encoder_hidden_states or context"),
        ({"encoder_hidden_states_image": torch.zeros(2, 7, 16)}, "takes no CLIP tokens"),
    ],
)
def test_wrong_inputs_are_named(model, change, message):
    with pytest.raises(InputError, match=message):
        model(**make_inputs("text-to-video") | change)


def test_text_and_context_together_are_refused(model):
    inputs = make_inputs("text-to-video")
    context = model.prepare_context(inputs["encoder_hidden_states"])
    with pytest.raises(InputError, match="not both"):
        model(**inputs, context=context)


def test_missing_or_misshapen_picture_tokens_are_named(models):
    inputs = make_inputs("first-last")
    pictures = inputs.pop("encoder_hidden_states_image")
    with pytest.raises(InputError, match="needs CLIP tokens"):
        models["first-last"][1](**inputs)
    with pytest.raises(InputError, match="4 x tokens x 16"):
        models["first-last"][1](**inputs, encoder_hidden_states_image=pictures[:2])


@pytest.mark.parametrize("num_real_tokens", [[3], [3, 10], [-1, 3]])
def test_impossible_token_counts_are_refused(model, num_real_tokens):
    with pytest.raises(InputError, match="2 numbers from 0 to 9"):
        model.prepare_context(torch.zeros(2, 9, 20), num_real_tokens=num_real_tokens)


def test_padding_that_is_not_zero_is_refused(model):
    text = torch.zeros(2, 9, 20)
    text[0, 3, 7] = 0.1
    model.prepare_context(text, num_real_tokens=[4, 0])
    with pytest.raises(InputError, match="must be zeros"):
        model.prepare_context(text, num_real_tokens=[3, 0])


@pytest.mark.parametrize("change", [{"qk_norm": None}, {"image_dim": 16}])
def test_impossible_configurations_are_refused(change):
    with pytest.raises(ConfigError):
        PixelDanceTransformer3DModel(**TINY | change)


def test_shapes_can_be_computed_without_weights():
    with torch.device("meta"):
        model = PixelDanceTransformer3DModel(**TINY)
        inputs = {name: value.to("meta") for name, value in make_inputs("text-to-video").items()}
    assert model(**inputs).sample.shape == (2, 4, 3, 4, 6)
