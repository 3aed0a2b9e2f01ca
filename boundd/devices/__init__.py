"""Where device readings come from: NVML, the CPU, or a simulation. Each is a `boundd.ports.DeviceProbe`."""
