"""PyTorch to ONNX: conversion, its passes, and smaller weights."""
