"""What the server costs when the model costs nothing: the real tritonserver, with an engine that answers at once."""
