"""Peak FLOP/s of GPUs. It imports nothing, so that commands can read it before anything heavy loads."""

PEAKS = {
    "A100": (312e12, 19.5e12),
    "H100 PCIe": (756e12, 51e12),
    "H100 NVL": (835e12, 60e12),
    "H100": (989e12, 67e12),
    "H200": (989e12, 67e12),
    "H200 NVL": (835e12, 60e12),
    "GH200": (989e12, 67e12),
    "B200": (2250e12, 80e12),
    "L40S": (362e12, 91.6e12),
    "A40": (149.7e12, 37.4e12),
    "A6000": (154.8e12, 38.7e12),
}
"""Dense peak FLOP/s by words of the device name (longest match): bf16 tensor cores, fp32 (vendor data sheets)."""
