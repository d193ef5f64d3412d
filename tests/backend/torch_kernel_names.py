"""The torch engine's kernels, by name: what the tests of compilation expect to find."""

DECODER = frozenset(
    {
        "open_frame_kernel",
        "open_step_kernel",
        "qkv_kernel",
        "attention_kernel",
        "out_kernel",
        "gate_up_kernel",
        "down_kernel",
        "heads_kernel",
        "select_kernel",
    }
)
ENCODER = frozenset({"patch_kernel", "convolution_kernel", "project_kernel"})
