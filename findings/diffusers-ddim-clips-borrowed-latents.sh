#!/usr/bin/env bash
# diffusers 0.42.1: DDIM made from the config of another scheduler of the same model clips the latents to [-1, 1].
#
# `SomeScheduler.from_config(pipe.scheduler.config)` is the documented way to change a pipeline's scheduler. The configs
# that DPM-Solver++, UniPC and Euler save have no `clip_sample`, and DDIM's default for it is True, made for models of
# pixels. A latent diffusion model's latents go beyond 1, so the images change, without an error or a warning: here the
# predicted original of latents of 3.0 comes back as 1.0.
# boundd: `clip_sample` and `thresholding` are off for every scheduler that it makes (docs/worker.md, "Schedulers").
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check diffusers==0.42.1 torch==2.13.0 numpy==2.4.6 2>/dev/null
"$folder/venv/bin/python" -W ignore - <<'PY' >"$folder/seen"
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, PNDMScheduler, UniPCMultistepScheduler

latents = torch.full((1, 4, 2, 2), 3.0)
for kind in (DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, PNDMScheduler, UniPCMultistepScheduler):
    options = {"clip_sample": False} if kind is DDIMScheduler else {}
    lender = kind(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **options)
    scheduler = DDIMScheduler.from_config(lender.config)
    scheduler.set_timesteps(10)
    step = scheduler.step(torch.zeros_like(latents), int(scheduler.timesteps[-1]), latents)
    largest = float(step.pred_original_sample.max())
    print(f"from {kind.__name__}: clip_sample {scheduler.config.clip_sample}, largest {largest:.1f}")
PY
cat "$folder/seen"
diff "$folder/seen" - <<'EXPECTED' || { echo "the behaviour has changed"; exit 1; }
from DDIMScheduler: clip_sample False, largest 3.0
from DPMSolverMultistepScheduler: clip_sample True, largest 1.0
from EulerDiscreteScheduler: clip_sample True, largest 1.0
from PNDMScheduler: clip_sample True, largest 1.0
from UniPCMultistepScheduler: clip_sample True, largest 1.0
EXPECTED
echo "as described"
