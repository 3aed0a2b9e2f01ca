#!/usr/bin/env bash
# tomesd 0.1.3 on a U-Net of SDXL's shape: the default max_downsample = 1 is accepted, reports success and merges nothing.
#
# SDXL has no transformer blocks at its top level, and max_downsample = 1 patches that level alone. The images are the
# same, bit for bit, at any ratio; a timing of it is a timing of nothing. From 2 on, tokens are merged.
# boundd: ToMe's grid for SDXL is max_downsample 2 and 4 (docs/worker.md), and a point that changes nothing has no PSNR.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tomesd==0.1.3 diffusers==0.42.1 torch==2.13.0 \
    numpy==2.4.6 transformers==5.23.0 2>/dev/null
"$folder/venv/bin/python" -W ignore - <<'PY' >"$folder/seen"
import torch
import tomesd
from diffusers import UNet2DConditionModel

torch.manual_seed(0)
unet = UNet2DConditionModel(
    sample_size=32,
    block_out_channels=(32, 64, 64),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    cross_attention_dim=16,
    attention_head_dim=8,
    layers_per_block=1,
    norm_num_groups=8,
).eval()
latents, text = torch.randn(1, 4, 32, 32), torch.randn(1, 4, 16)


def image():
    with torch.no_grad():
        return unet(latents, 500, text).sample


plain = image()
for most in (1, 2, 4):
    tomesd.apply_patch(unet, ratio=0.7, max_downsample=most, use_rand=False)
    print(f"max_downsample {most}, ratio 0.7: {'the same bits' if torch.equal(image(), plain) else 'another image'}")
    tomesd.remove_patch(unet)
PY
cat "$folder/seen"
diff "$folder/seen" - <<'EXPECTED' || { echo "the behaviour has changed"; exit 1; }
max_downsample 1, ratio 0.7: the same bits
max_downsample 2, ratio 0.7: another image
max_downsample 4, ratio 0.7: another image
EXPECTED
echo "as described"
