"""What runs a network: onnxruntime, LiteRT, Core ML."""
