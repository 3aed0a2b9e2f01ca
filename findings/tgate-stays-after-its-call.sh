#!/usr/bin/env bash
# tgate 1.0.0 has no way back: after one gated call, the plain pipeline makes another image than before, without a word.
#
# The loader replaces the forward of each attention module on the instance, and what the gated call cached stays there.
# The next plain call of the same pipeline, with the same seed, uses it: here it ends without an error and with other
# latents (in another shape of model, or after another gate step, it fails in the middle). Nothing in the package undoes
# it, so a comparison of "with" and "without" on one loaded model is wrong unless it does so itself.
# boundd: every module's attributes are put back as they were (boundd/worker/methods/base.py, `Restored`).
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check diffusers==0.42.1 torch==2.13.0 numpy==2.4.6 \
    transformers==5.23.0 accelerate==1.15.0 2>/dev/null
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps tgate==1.0.0 2>/dev/null
"$folder/venv/bin/python" -W ignore - <<'PY' >"$folder/seen" 2>"$folder/noise" || { tail -5 "$folder/noise"; exit 1; }
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tgate import TgateSDLoader

torch.manual_seed(0)
unet = UNet2DConditionModel(
    sample_size=8, block_out_channels=(32, 64), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=16, attention_head_dim=8,
    layers_per_block=1, norm_num_groups=8,
)
vae = AutoencoderKL(block_out_channels=(32,), norm_num_groups=8, latent_channels=4)
pipe = StableDiffusionPipeline(
    vae=vae, text_encoder=None, tokenizer=None, unet=unet, scheduler=DDIMScheduler(clip_sample=False),
    safety_checker=None, feature_extractor=None, requires_safety_checker=False,
)
pipe.set_progress_bar_config(disable=True)
text, none = torch.randn(1, 4, 16), torch.randn(1, 4, 16)


def latents(generate, **more):
    return generate(
        prompt_embeds=text, negative_prompt_embeds=none, num_inference_steps=6, output_type="latent",
        guidance_scale=7.5, generator=torch.Generator().manual_seed(1), **more,
    ).images


before = latents(pipe)
print("plain, again:", "the same bits" if torch.equal(latents(pipe), before) else "another image")
TgateSDLoader(pipe)
gated = latents(lambda **options: pipe.tgate(None, gate_step=3, **options))
print("gated:", "the same bits" if torch.equal(gated, before) else "another image")
print("plain, after a gated one:", "the same bits" if torch.equal(latents(pipe), before) else "another image")
PY
cat "$folder/seen"
diff "$folder/seen" - <<'EXPECTED' || { echo "the behaviour has changed"; exit 1; }
plain, again: the same bits
gated: another image
plain, after a gated one: another image
EXPECTED
echo "as described"
