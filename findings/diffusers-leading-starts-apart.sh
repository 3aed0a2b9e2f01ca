#!/usr/bin/env bash
# diffusers 0.42.1: with timestep_spacing "leading", two schedulers made from one config start at different noise levels.
#
# For 100 steps of a 1,000-step schedule, DDIM starts at timestep 991, and DPM-Solver++, DEIS and UniPC at 901: they take
# strides of 1000 // 101 = 9, so a tenth of the noise is never removed. For 1,000 steps DDIM visits a thousand timesteps,
# and the three visit timestep 1 a thousand times. Neither raises or warns.
# "The same model with another scheduler" then compares different work.
# boundd: the timesteps that were visited are in the result, and 1,000 copies of one are refused (docs/worker.md).
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check diffusers==0.42.1 torch==2.13.0 numpy==2.4.6 scipy==1.17.1 2>/dev/null
"$folder/venv/bin/python" -W ignore - <<'PY' >"$folder/seen"
from diffusers import DDIMScheduler, DEISMultistepScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

config = {"num_train_timesteps": 1000, "steps_offset": 1, "timestep_spacing": "leading"}
for kind in (DDIMScheduler, DPMSolverMultistepScheduler, DEISMultistepScheduler, UniPCMultistepScheduler):
    said = []
    for steps in (100, 999, 1000):
        scheduler = kind.from_config(config)
        try:
            scheduler.set_timesteps(steps)
            visited = [int(each) for each in scheduler.timesteps]
            said.append(f"{steps}: first {visited[0]}, different {len(set(visited))}")
        except Exception as error:
            said.append(f"{steps}: {type(error).__name__}")
    print(f"{kind.__name__}: {'; '.join(said)}")
PY
cat "$folder/seen"
diff "$folder/seen" - <<'EXPECTED' || { echo "the behaviour has changed"; exit 1; }
DDIMScheduler: 100: first 991, different 100; 999: first 999, different 999; 1000: first 1000, different 1000
DPMSolverMultistepScheduler: 100: first 901, different 100; 999: first 1000, different 999; 1000: first 1, different 1
DEISMultistepScheduler: 100: first 901, different 100; 999: first 1000, different 999; 1000: first 1, different 1
UniPCMultistepScheduler: 100: first 901, different 100; 999: first 1000, different 999; 1000: first 1, different 1
EXPECTED
echo "as described"
