"""Our image classes inside (tiny) pipelines of diffusers: run, tiled, saved, loaded, in float16 without an upcast."""

import json

import pytest
import torch
from diffusers import (
    AnimateDiffPipeline,
    AutoPipelineForImage2Image,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    MotionAdapter,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from images import SMALL, pair
from oracle import assert_close, error, noise

from temporal_vae import AutoencoderKL, AutoencoderKLFlux2

# schedulers of diffusers hand tensors to numpy, and torch lacks a keyword that numpy 2 passes
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)

ENLARGED = 2e-4  # what steps of a network of random weights make of the engine's rounding
NARROW = {**SMALL, "block_out_channels": (32, 64)}
FLOW = {**NARROW, "use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.06}
ABSENT = dict.fromkeys(("text_encoder", "tokenizer"))


def unet(**options):
    return UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        sample_size=8,
        **options,
    )


def sd(vae):
    spare = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    return StableDiffusionPipeline(vae=vae, unet=unet(), scheduler=scheduler, **ABSENT, **spare)


def sdxl(vae):
    wide = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    return StableDiffusionXLPipeline(
        vae=vae,
        unet=unet(**wide, projection_class_embeddings_input_dim=80, transformer_layers_per_block=1),
        scheduler=EulerDiscreteScheduler(),
        text_encoder_2=None,
        tokenizer_2=None,
        add_watermarker=False,
        **ABSENT,
    )


def sd3(vae):
    transformer = SD3Transformer2DModel(
        sample_size=32, patch_size=1, in_channels=16, out_channels=16, num_layers=1, attention_head_dim=8,
        num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=32, pooled_projection_dim=64,
    )  # fmt: skip
    more = dict.fromkeys(("text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3"))
    scheduler = FlowMatchEulerDiscreteScheduler()
    return StableDiffusion3Pipeline(vae=vae, transformer=transformer, scheduler=scheduler, **ABSENT, **more)


def flux(vae):
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8],
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler()
    return FluxPipeline(
        vae=vae, transformer=transformer, scheduler=scheduler, text_encoder_2=None, tokenizer_2=None, **ABSENT
    )


def flux2(vae):
    transformer = Flux2Transformer2DModel(
        patch_size=1, in_channels=128, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, timestep_guidance_channels=32, axes_dims_rope=[4, 4, 4, 4],
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler()
    return Flux2Pipeline(vae=vae, transformer=transformer, scheduler=scheduler, **ABSENT)


def animatediff(vae):
    adapter = MotionAdapter(
        block_out_channels=(32, 64), motion_layers_per_block=1, motion_num_attention_heads=2, motion_norm_num_groups=2
    )  # fmt: skip
    scheduler = DDIMScheduler(clip_sample=False, steps_offset=1)
    return AnimateDiffPipeline(vae=vae, unet=unet(), motion_adapter=adapter, scheduler=scheduler, **ABSENT)


TEXT = {"prompt_embeds": noise(1, 7, 32), "negative_prompt_embeds": noise(1, 7, 32, seed=2)}
POOLED = {"pooled_prompt_embeds": noise(1, 32), "negative_pooled_prompt_embeds": noise(1, 32, seed=2)}
LONG = {"pooled_prompt_embeds": noise(1, 64), "negative_pooled_prompt_embeds": noise(1, 64, seed=2)}
KL16 = {**FLOW, "latent_channels": 16}
PIPELINES = {
    "SD": (sd, ("AutoencoderKL", NARROW), TEXT),
    "SDXL": (sdxl, ("AutoencoderKL", NARROW), TEXT | POOLED),
    "SD 3": (sd3, ("AutoencoderKL", KL16), TEXT | LONG),
    "FLUX": (
        flux, ("AutoencoderKL", KL16), {"prompt_embeds": noise(1, 7, 32), "pooled_prompt_embeds": noise(1, 32)},
    ),
    "FLUX.2": (flux2, ("AutoencoderKLFlux2", {**NARROW, "latent_channels": 32}), {"prompt_embeds": noise(1, 7, 32)}),
    "AnimateDiff": (animatediff, ("AutoencoderKL", NARROW), TEXT | {"num_frames": 3}),
}  # fmt: skip


def build(name, vae):
    torch.manual_seed(0)
    pipe = PIPELINES[name][0](vae)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(name, pipe, **options):
    """Pictures, values in [0, 1]."""
    settings = {"height": 32, "width": 32, "num_inference_steps": 2, "output_type": "pt"}
    found = pipe(generator=torch.Generator().manual_seed(0), **(settings | PIPELINES[name][2] | options))
    return found.frames if name == "AnimateDiff" else found.images


def absent(pipe):
    """Parts that it goes without, as they are passed to load it."""
    return {name: None for name, part in pipe.components.items() if part is None}


@pytest.mark.parametrize("name", PIPELINES)
def test_same_pictures_as_with_the_diffusers_class(name, tmp_path):
    """And with tiling, which is exact here; and after saving and loading."""
    ours, theirs = pair(*PIPELINES[name][1])
    expected = run(name, build(name, theirs))
    assert expected.std() > 0.02
    pipe = build(name, ours)
    assert_close(run(name, pipe), expected, ENLARGED)
    pipe.vae.tile_sample_min_size, pipe.vae.tile_latent_min_size = 16, 8
    getattr(pipe, "enable_vae_tiling", pipe.vae.enable_tiling)()
    assert_close(run(name, pipe), expected, ENLARGED)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["vae"] == ["temporal_vae", PIPELINES[name][1][0]]
    again = type(pipe).from_pretrained(tmp_path, **absent(pipe))
    assert type(again.vae) is type(ours)
    again.set_progress_bar_config(disable=True)
    assert_close(
        run(name, again), expected, 1e-3
    )  # weights lie otherwise in memory: other roundings, enlarged


def test_img2img_encodes():
    ours, theirs = pair(*PIPELINES["SD"][1])
    found = []
    for vae in (ours, theirs):
        pipe = StableDiffusionImg2ImgPipeline(**build("SD", vae).components, requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)
        given = {**TEXT, "image": noise(1, 3, 32, 32).sigmoid(), "strength": 0.9, "num_inference_steps": 4}
        found.append(pipe(generator=torch.Generator().manual_seed(0), output_type="pt", **given).images)
    assert_close(*found, ENLARGED)


def test_from_one_pipeline_to_another():
    """As docs/diffusers.md has it: where diffusers asks for its very class, the autoencoder is passed."""
    vae = pair(*PIPELINES["SD"][1])[0]
    pipe = build("SD", vae)
    with pytest.raises(ValueError, match="vae"):
        StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    assert StableDiffusionImg2ImgPipeline.from_pipe(pipe, vae=pipe.vae).vae is vae
    assert AutoPipelineForImage2Image.from_pipe(pipe).vae is vae


def test_float16_without_an_upcast(monkeypatch):
    """SDXL's autoencoder overflows in float16, so its pipeline casts it; the engine needs no such thing."""
    wide, _ = pair(*PIPELINES["SDXL"][1])
    with torch.no_grad():
        for name, parameter in wide.decoder.named_parameters():
            if "conv2" in name or name.startswith("conv_in"):
                parameter.mul_(1e4).copy_(parameter.half())
    half = AutoencoderKL.from_config(wide.config)
    half.load_state_dict(wide.state_dict())
    pipe = build("SDXL", AutoencoderKL.from_module(half, force_upcast=False)).to(dtype=torch.float16)
    given = {name: values.half() for name, values in PIPELINES["SDXL"][2].items()}
    latents = run("SDXL", pipe, output_type="latent", **given)
    with torch.no_grad():
        decoded = wide.decode(latents.float() / wide.config.scaling_factor).sample
    expected = pipe.image_processor.postprocess(decoded, output_type="pt")
    kinds, decode = [], pipe.vae.decode
    monkeypatch.setattr(
        pipe.vae, "decode", lambda z, **options: kinds.append(z.dtype) or decode(z, **options)
    )
    pictures = run("SDXL", pipe, **given)
    assert kinds == [torch.float16]
    assert pictures.isfinite().all()
    assert error(pictures.float(), expected) < 0.01
    monkeypatch.setenv("TEMPORAL_VAE_ENGINE", "never")
    assert not run("SDXL", pipe, **given).isfinite().all()  # black: what the modules make of it


def test_offloading():
    ours, theirs = pair(*PIPELINES["SD"][1])
    expected = run("SD", build("SD", theirs))
    pipe = build("SD", ours)
    pipe.vae.enable_tiling(memory_limit="1GiB")
    pipe.enable_model_cpu_offload(device="cpu")
    assert_close(run("SD", pipe), expected, ENLARGED)


def test_a_pipeline_loads_the_class_that_is_named(tmp_path):
    pipe = build("FLUX.2", pair(*PIPELINES["FLUX.2"][1])[0])
    pipe.save_pretrained(tmp_path)
    assert type(DiffusionPipeline.from_pretrained(tmp_path, **absent(pipe)).vae) is AutoencoderKLFlux2
