"""AutoGaze client SDK: numpy and tritonclient only."""
