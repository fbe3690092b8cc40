"""Files that drop into tools which take SAM as ONNX: a literal for each tool, built and compared."""
