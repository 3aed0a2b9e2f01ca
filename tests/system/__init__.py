"""Tests in a throw-away machine whose PID 1 is the real systemd."""
